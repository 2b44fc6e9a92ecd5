package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"imagefs/remote"
)

// What a web server gets patience for.
const (
	maxRedirects  = 10
	firstTries    = 3                      // of a server that never answered
	firstPause    = 100 * time.Millisecond // between two tries, doubled up to
	longestPause  = 5 * time.Second
	stallFraction = 3 // of the patience: how long a body may be silent before it is asked for anew
)

// web fetches a file of a web server. A connection that breaks is resumed
// where it broke; patience is how long it goes on without a byte. Requests go
// straight through a Transport: the errors of http.Client hold whole URLs, and
// these may be secret.
func (d *download) web(ctx context.Context, u *url.URL, patience time.Duration) error {
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: patience}).DialContext,
		TLSHandshakeTimeout:   patience,
		ResponseHeaderTimeout: patience,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
	}
	defer tr.CloseIdleConnections()
	w := &webFetch{download: d, url: u, transport: tr, patience: patience, total: -1}
	pause, last := firstPause, time.Now()
	for tries := 1; ; tries++ {
		before := w.most
		err := w.try(ctx)
		var pass passing
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			d.size = w.got
			return nil
		case !errors.As(err, &pass):
			return err
		}
		if w.most > before {
			pause, last = firstPause, time.Now()
		}
		if !w.answered && tries == firstTries {
			return fmt.Errorf("%w: %w", remote.ErrUnavailable, pass.error)
		}
		if time.Since(last)+pause > patience {
			return fmt.Errorf("%w: no more than %d bytes came within %v: %w", remote.ErrUnavailable, w.most, patience, pass.error)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, longestPause)
	}
}

// passing is an error that may be gone with the next try.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

// webFetch is a file of a web server that is being fetched.
type webFetch struct {
	*download
	url       *url.URL
	transport http.RoundTripper
	patience  time.Duration

	answered bool // the server was reached

	version string // what If-Range asks for; "" if the server says nothing that would do
	tagged  bool   // version is an entity tag rather than a date
	total   int64  // bytes; -1 as long as it is not known
	got     int64  // bytes that the file has
	most    int64  // of got at any time
}

var errStalled = errors.New("the server sends nothing more")

// try makes one request and reads as much as comes.
func (w *webFetch) try(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(w.patience, func() { cancel(errStalled) })
	defer stall.Stop()
	resp, err := w.get(ctx)
	if err != nil {
		if context.Cause(ctx) == errStalled {
			err = passing{errStalled}
		}
		return err
	}
	defer resp.Body.Close()
	if err := w.accept(resp); err != nil {
		return err
	}
	out := &sparseWriter{file: w.file, off: w.got, wrote: func(off int64) {
		stall.Reset(w.patience / stallFraction)
		w.got, w.most = off, max(w.most, off)
		w.progress(off, w.total)
	}}
	var broken error // on the way here, rather than on the disk
	_, err = io.Copy(out, readerFunc(func(p []byte) (n int, err error) {
		if n, err = resp.Body.Read(p); err != nil && err != io.EOF {
			broken = err
		}
		return n, err
	}))
	switch {
	case err != nil && context.Cause(ctx) == errStalled:
		return passing{errStalled}
	case broken != nil:
		return passing{fmt.Errorf("the connection broke after %d bytes: %w", w.got, broken)}
	case err != nil:
		return err
	case w.total >= 0 && w.got != w.total:
		return passing{fmt.Errorf("%d of %d bytes came: %w", w.got, w.total, io.ErrUnexpectedEOF)}
	}
	return nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// get asks for what is missing, and goes where it is sent.
func (w *webFetch) get(ctx context.Context) (*http.Response, error) {
	u := w.url
	for range maxRedirects + 1 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "", nil)
		if err != nil {
			return nil, err
		}
		at := *u
		at.User, at.Fragment = nil, ""
		req.URL, req.Host = &at, at.Host
		if user := w.url.User; user != nil && u.Scheme == w.url.Scheme && u.Host == w.url.Host {
			password, _ := user.Password()
			req.SetBasicAuth(user.Username(), password)
		}
		req.Header.Set("User-Agent", "imagefs/"+buildVersion())
		if w.got > 0 && w.version != "" {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", w.got))
			req.Header.Set("If-Range", w.version)
		}
		resp, err := w.transport.RoundTrip(req)
		if err != nil {
			var cert *tls.CertificateVerificationError
			if errors.As(err, &cert) {
				return nil, err
			}
			return nil, passing{err}
		}
		w.answered = true
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		resp.Body.Close()
		if u, err = redirect(u, resp.Header.Get("Location")); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("the server redirects more than %d times", maxRedirects)
}

// redirect is where a redirect of u leads, if it may be followed.
func redirect(u *url.URL, location string) (*url.URL, error) {
	to, err := u.Parse(location)
	switch {
	case err != nil || location == "":
		return nil, errors.New("the server redirects to what is no URL") // err holds the query
	case to.Scheme != "http" && to.Scheme != "https":
		return nil, fmt.Errorf("the server redirects to a URL of kind %q: only http and https are followed", to.Scheme)
	case to.Host == "":
		return nil, errors.New("the server redirects to a URL without a host")
	case u.Scheme == "https" && to.Scheme == "http":
		return nil, fmt.Errorf("the server redirects from https to %q, where the image could be altered on its way: give that URL if you accept it", redact(to.String()))
	}
	return to, nil
}

// accept checks what an answer says of itself, and sets the file to where its
// body begins.
func (w *webFetch) accept(resp *http.Response) error {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return fmt.Errorf("the server sends the file encoded as %q, which is not its own bytes", enc)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return w.whole(resp)
	case http.StatusPartialContent:
		return w.rest(resp)
	}
	return w.refusal(resp)
}

// whole accepts a body that is the whole file.
func (w *webFetch) whole(resp *http.Response) error {
	size := resp.ContentLength
	if size < 0 && resp.ProtoMajor < 2 && len(resp.TransferEncoding) == 0 {
		return errors.New("the server does not say how long the file is, so that one that is cut short would not be noticed: fetch it yourself and import the file")
	}
	version, tagged := validator(resp.Header)
	if w.got > 0 && w.version != "" && version != w.version || w.total >= 0 && size >= 0 && size != w.total {
		return fmt.Errorf("%w while it was fetched: another version came after %d bytes", remote.ErrChanged, w.got)
	}
	w.version, w.tagged = version, tagged
	if size >= 0 {
		w.total = size
	}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		w.modified = t
	}
	w.got = 0
	return w.file.Truncate(0)
}

// rest accepts a body that goes on where the last one broke.
func (w *webFetch) rest(resp *http.Response) error {
	var from, to, size int64
	cr := resp.Header.Get("Content-Range")
	if _, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &from, &to, &size); err != nil || from != w.got || to != size-1 || w.got == 0 {
		return fmt.Errorf("the server sent content range %q when asked for bytes from %d on", cr, w.got)
	}
	if etag := resp.Header.Get("ETag"); w.tagged && etag != "" && etag != w.version || w.total >= 0 && size != w.total {
		return fmt.Errorf("%w while it was fetched: another version came after %d bytes", remote.ErrChanged, w.got)
	}
	w.total = size
	return nil
}

// validator is what names the version of an answer for If-Range: a strong
// entity tag, else a date that no later change can share (RFC 9110, 8.8.2.2).
func validator(h http.Header) (version string, tagged bool) {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return etag, true
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	date, derr := http.ParseTime(h.Get("Date"))
	if err != nil || derr != nil || date.Sub(modified) < time.Second {
		return "", false
	}
	return h.Get("Last-Modified"), false
}

// refusal says what a status means.
func (w *webFetch) refusal(resp *http.Response) error {
	status := fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fmt.Errorf("the server refuses it with %s: is a presigned URL past its time, or does the URL need its user and password?: %w", status, fs.ErrPermission)
	case code == http.StatusNotFound || code == http.StatusGone:
		return fmt.Errorf("the server answers %s: %w", status, fs.ErrNotExist)
	case code == http.StatusRequestedRangeNotSatisfiable && w.got > 0:
		return fmt.Errorf("the server said that the file has %d bytes, and has no more than %d: %w", w.total, w.got, io.ErrUnexpectedEOF)
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests ||
		code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported:
		return passing{fmt.Errorf("the server answers %s", status)}
	}
	return fmt.Errorf("the server answers %s, which is no file", status)
}
