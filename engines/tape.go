package engines

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// tape writes a [Recording]. A nil tape records nothing.
type tape struct {
	folder  string
	command []string
	began   time.Time
	file    *os.File
	logger  *slog.Logger
}

func newTape(folder string, command []string, began time.Time, logger *slog.Logger) (*tape, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the recording: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(folder, "timeline.jsonl"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the recording: %w", err)
	}
	return &tape{folder: folder, command: command, began: began, file: file, logger: logger}, nil
}

func (r *tape) event(e Event) {
	if r == nil || r.file == nil {
		return
	}
	l := recordedLine{T: max(e.At.Sub(r.began), 0).Round(time.Microsecond).Seconds(), Src: e.Source}
	if e.Source == Hook && json.Valid(e.Line) {
		l.Msg = e.Line
	} else {
		text := Text(string(e.Line)) + "\n"
		l.Data = &text
	}
	b, err := json.Marshal(l)
	if err == nil {
		_, err = r.file.Write(append(b, '\n'))
	}
	if err != nil {
		r.lost(err)
	}
}

// close completes the recording with how the engine ended.
func (r *tape) close(x Exit) {
	if r == nil || r.file == nil {
		return
	}
	code := x.Code
	if x.Signal != 0 {
		code = -int(x.Signal) // as the field has it
	}
	b, err := json.MarshalIndent(recordedMeta{Command: r.command, ExitCode: &code}, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(r.folder, "meta.json"), append(b, '\n'), 0o600)
	}
	if e := r.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		r.lost(err)
	}
	r.file = nil
}

func (r *tape) lost(err error) {
	r.logger.Warn("the recording is not complete; the run goes on", "folder", r.folder, "err", err)
	r.file.Close()
	r.file = nil
}
