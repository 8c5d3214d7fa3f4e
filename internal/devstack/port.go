package devstack

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

// freePort returns a free loopback port, preferred if that is free and not 0.
//
// The port lies below the range from which the kernel gives ports to outgoing
// connections. Inside it, a client that keeps dialling a server that is down
// will some day be given the server's own port, connect to itself, and keep the
// server from coming back.
func freePort(preferred int) (int, error) {
	if preferred != 0 && portIsFree(preferred) {
		return preferred, nil
	}
	const width, lowest = 12000, 2000
	high := ephemeralStart()
	low := max(high-width, lowest)
	if high <= low {
		low, high = 20000, 32000
	}
	for range 200 {
		if port := low + rand.IntN(high-low); portIsFree(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("finding a free loopback port between %d and %d: tried 200", low, high)
}

func portIsFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// ephemeralStart is the first port the kernel gives to outgoing connections.
func ephemeralStart() int {
	const usual = 32768
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	var low, high int
	if _, err := fmt.Sscan(string(b), &low, &high); err != nil {
		return usual
	}
	return low
}
