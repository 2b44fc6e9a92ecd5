package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProfilesAreServedToThisHostAlone(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, addr := range []string{"6060", ":6060", "0.0.0.0:0", "192.0.2.1:0", "example.org:80", "[::]:0"} {
		if p, err := serveProfiles(addr, log); err == nil {
			p.close()
			t.Errorf("%q was taken", addr)
		} else if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%q: %v", addr, err)
		}
	}
	p, err := serveProfiles("127.0.0.1:0", log)
	if err != nil {
		t.Fatal(err)
	}
	var oe *net.OpError
	if _, err := serveProfiles(p.addr, log); !errors.As(err, &oe) || !strings.Contains(err.Error(), "--pprof") {
		t.Errorf("an address in use: %v", err)
	}
	for path, want := range map[string]string{"": "goroutine", "heap?debug=1": "heap profile", "cmdline": "imagefs"} {
		res, err := http.Get("http://" + p.addr + "/debug/pprof/" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s, %v", path, res.Status, err)
		}
	}
	p.close()
	if _, err := http.Get("http://" + p.addr + "/debug/pprof/"); err == nil {
		t.Error("served after it was closed")
	}
}
