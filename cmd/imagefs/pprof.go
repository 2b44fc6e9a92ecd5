package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"
)

// profiles serves the runtime's profiles over HTTP, below /debug/pprof/. They
// tell what a program holds in memory, so the address has to be of this host.
type profiles struct {
	server *http.Server
	addr   string // that is listened on, its port chosen if that was 0
}

// serveProfiles listens on addr, HOST:PORT.
func serveProfiles(addr string, log *slog.Logger) (*profiles, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, usagef("--pprof %q: not an address such as 127.0.0.1:6060: %v", addr, err)
	}
	if ip, err := netip.ParseAddr(host); (err != nil || !ip.IsLoopback()) && host != "localhost" {
		return nil, usagef("--pprof %q: profiles are served to this host alone: give 127.0.0.1:PORT", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--pprof %q: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	p := &profiles{&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, l.Addr().String()}
	go func() {
		if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("profiles are no longer served", "addr", p.addr, "err", err)
		}
	}()
	log.Info("profiles are served", "url", "http://"+p.addr+"/debug/pprof/")
	return p, nil
}

func (p *profiles) close() { p.server.Close() }
