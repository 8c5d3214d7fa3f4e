package nextflow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
)

// maxBody bounds a post, in bytes. Nextflow's are a few kilobytes; the script of
// a task and the parameters of a run make them longer.
const maxBody = 1 << 20

// Handler takes what Nextflow posts with -with-weblog. Each post that is one is
// given to take, as JSON on one line; what take returns is the status of the
// answer, 2xx as a rule. It must return soon: Nextflow posts one after the other.
//
// Anything else is answered with 4xx and a line that says what was expected. So
// is what a browser sends from a page of somebody else, which could reach an
// address of this machine.
func Handler(take func(r *http.Request, body []byte) (status int)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "expected POST, from nextflow run -with-weblog", http.StatusMethodNotAllowed)
			return
		}
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" || r.Header.Get("Origin") != "" {
			http.Error(w, "expected application/json, and not from a web page", http.StatusUnsupportedMediaType)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			http.Error(w, "a post may have 1 MiB", http.StatusRequestEntityTooLarge)
			return
		} else if err != nil {
			http.Error(w, "the request was cut off", http.StatusBadRequest)
			return
		}
		if _, err := parsePost(body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var line bytes.Buffer
		if err := json.Compact(&line, body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		switch status := take(r, line.Bytes()); {
		case status == http.StatusServiceUnavailable:
			w.Header().Set("Retry-After", "10")
			http.Error(w, "too much is waiting for the broker, or too many runs are open", status)
		default:
			w.WriteHeader(status)
		}
	})
}

// forward posts a body to where the user has Nextflow post, with the credentials
// that Nextflow sends, and returns how it is answered.
func forward(ctx context.Context, client *http.Client, url string, from *http.Request, body []byte) int {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return http.StatusBadGateway
	}
	for _, name := range []string{"Content-Type", "Authorization", "User-Agent"} {
		if v := from.Header.Get(name); v != "" {
			request.Header.Set(name, v)
		}
	}
	answer, err := client.Do(request)
	if err != nil {
		return http.StatusBadGateway
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}
