package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// far is the time added to each request of a store that is not near.
const far = 20 * time.Millisecond

// disk compares reads through a full disk cache, and one being filled, with
// reads of the store alone, which answers 20 ms later than it could.
func (b *bench) disk() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s3, err := b.startS3(ctx)
	if err != nil {
		return err
	}
	defer s3.stop()
	endpoint, stop, err := delayed(s3.endpoint)
	if err != nil {
		return err
	}
	defer stop()
	if err := s3.upload(ctx, b.path("store", "guest.qcow2"), "guest.qcow2"); err != nil {
		return err
	}
	slow, err := os.MkdirTemp("", "imagefs-bench") // on a disk, unlike b.dir
	if err != nil {
		return err
	}
	defer os.RemoveAll(slow)
	fast := b.path("cache")
	for _, dir := range []string{fast, slow} {
		if err := command(b.imagefs, "warm", "-q", "--endpoint", endpoint, "--cache-dir", dir, "s3://bench", "guest"); err != nil {
			return err
		}
	}
	// reads times one kind of reading through a new mount.
	reads := func(read func(string) error, dir func() (string, error)) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			args := []string{"--endpoint", endpoint, "--read-only"}
			if dir != nil {
				d, err := dir()
				if err != nil {
					return 0, err
				}
				args = append(args, "--cache-dir", d)
			}
			mnt, done, err := b.mount("s3://bench", args...)
			if err != nil {
				return 0, err
			}
			defer done()
			return timed(func() error { return read(filepath.Join(mnt, "images/guest/disk0.vdi")) })
		}
	}
	b.head(fmt.Sprintf("an image in S3, %v added to each request: with --cache-dir against without", far), "with", "without")
	empty := b.path("empty")
	for _, k := range []struct {
		name string
		read func(string) error
		dir  func() (string, error)
	}{
		{"sequential, all cached, in the page cache", sequential(directFlag), func() (string, error) { return fast, nil }},
		{"sequential, all cached, on the disk alone", sequential(directFlag), func() (string, error) { return slow, forget(slow) }},
		{"random 4 KiB, 1 reader, 500 reads, all cached", random(1, 500), func() (string, error) { return slow, forget(slow) }},
		{"sequential, nothing cached yet", sequential(directFlag), func() (string, error) { return empty, os.RemoveAll(empty) }},
	} {
		if err := b.versus(k.name, reads(k.read, k.dir), reads(k.read, nil)); err != nil {
			return err
		}
	}
	return nil
}

// delayed serves what a server does, later.
func delayed(endpoint string) (address string, stop func(), err error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	proxy := &httputil.ReverseProxy{
		// The host that was asked stays in the request: it is signed.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(far)
		proxy.ServeHTTP(w, r)
	})}
	go server.Serve(l)
	return "http://" + l.Addr().String(), func() { server.Close() }, nil
}

// forget makes the kernel drop what it holds of the files below dir.
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		const dontNeed = 4 // POSIX_FADV_DONTNEED
		err = f.Sync()     // dirty pages stay
		if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
			err = errors.Join(err, errno)
		}
		return err
	})
}
