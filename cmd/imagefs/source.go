package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"imagefs/codec/all"
	"imagefs/fs/stage"
	"imagefs/remote/s3"
)

// source is something to import, as the command line names it.
type source struct {
	label string // for people: of a URL without what may be secret
	base  string // last part of its name; "" if it has none
	stdin bool
	path  string // of a file of this machine

	// fetch brings what is no file of this machine into d. It is nil for one.
	fetch func(ctx context.Context, d *download) error
}

// parseSource reads an argument. It does no I/O.
func parseSource(arg string, f *storeFlags) (*source, error) {
	scheme, rest, isURL := strings.Cut(arg, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case arg == "-":
		return &source{label: "standard input", stdin: true, fetch: func(ctx context.Context, d *download) error {
			return d.pipe(ctx, func() (*os.File, error) { return os.Stdin, nil })
		}}, nil
	case !isURL || scheme == "file":
		if isURL {
			arg = rest
		}
		return &source{label: arg, base: filepath.Base(arg), path: arg}, nil
	case scheme == "http" || scheme == "https":
		return webSource(arg, f.timeout)
	case scheme == "s3":
		return objectSource(arg, f)
	}
	return nil, usagef("source %q: %q is not a kind of source: give a file, \"-\", an http or https URL, or s3://BUCKET/KEY", redact(arg), scheme)
}

// redact is a URL without what may be secret: user, query and fragment.
func redact(arg string) string {
	scheme, rest, _ := strings.Cut(arg, "://")
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	host, path, slash := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	if slash {
		host += "/"
	}
	return scheme + "://" + host + path
}

// webSource is a file of a web server.
func webSource(arg string, patience time.Duration) (*source, error) {
	u, err := url.Parse(arg)
	if err != nil || u.Host == "" {
		return nil, usagef("source %q is not a URL such as https://HOST/PATH", redact(arg)) // err holds the query
	}
	base := path.Base(u.Path)
	if base == "/" || base == "." {
		base = ""
	}
	return &source{label: redact(arg), base: base, fetch: func(ctx context.Context, d *download) error {
		return d.web(ctx, u, patience)
	}}, nil
}

// objectSource is an object of an S3 service.
func objectSource(arg string, f *storeFlags) (*source, error) {
	bucket, key, err := s3.ParseURL(arg)
	if err == nil && (key == "" || strings.HasSuffix(arg, "/")) {
		err = fmt.Errorf("url %q: no object is named: give s3://BUCKET/KEY", arg)
	}
	if err != nil {
		return nil, usagef("source: %v", err)
	}
	folder, base := path.Split(key)
	return &source{label: arg, base: base, fetch: func(ctx context.Context, d *download) error {
		return d.object(ctx, f, "s3://"+bucket+"/"+folder, base)
	}}, nil
}

// extension is the extension of the name, in lower case and without dot.
// What follows the last dot of "debian-12.5" is a number, and none.
func (s *source) extension() string {
	ext := strings.TrimPrefix(strings.ToLower(path.Ext(s.base)), ".")
	if strings.Trim(ext, "0123456789") == "" {
		return ""
	}
	return ext
}

// stem is the name without its extension.
func (s *source) stem() string {
	if s.extension() == "" {
		return s.base
	}
	return strings.TrimSuffix(s.base, path.Ext(s.base))
}

// promise is the format that the name promises, "" if none.
func (s *source) promise() string { return all.Extensions[s.extension()] }

// input is a source on its way to be a disk.
type input struct {
	*source
	number  int
	job     stage.Job
	before  fs.FileInfo    // of a file that others may write to; nil for one that was fetched
	checked *stage.Checked // once it is
	stored  bool
	joined  bool // a piece that is part of a disk
}

// open opens the source, or fetches it into the scratch folder.
func (in *input) open(ctx context.Context, s *scratch, progress func(done, total int64)) error {
	if in.fetch != nil {
		return in.download(ctx, s, in.fetch, progress)
	}
	info, err := os.Stat(in.path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("it is a folder, not a file")
	case info.Mode()&fs.ModeCharDevice != 0:
		return fmt.Errorf("it is a character device, not a file")
	case !info.Mode().IsRegular():
		return in.download(ctx, s, func(ctx context.Context, d *download) error {
			return d.pipe(ctx, func() (*os.File, error) { return os.Open(in.path) })
		}, progress)
	}
	if in.job.File, err = os.Open(in.path); err != nil {
		return err
	}
	if in.before, err = in.job.File.Stat(); err != nil {
		return err
	}
	if !in.before.Mode().IsRegular() {
		return fmt.Errorf("it is no longer a file")
	}
	in.job.Size, in.job.Modified = in.before.Size(), in.before.ModTime()
	return nil
}

// download fetches the source into a temporary file.
func (in *input) download(ctx context.Context, s *scratch, fetch func(context.Context, *download) error, progress func(done, total int64)) error {
	f, err := s.file()
	if err != nil {
		return err
	}
	in.job.File = f
	d := &download{file: f, modified: time.Now(), progress: progress}
	err = fetch(ctx, d)
	if err == nil {
		err = f.Truncate(d.size) // holes at the end
	}
	if err != nil {
		return s.explain(err)
	}
	in.job.Size, in.job.Modified = d.size, d.modified
	return nil
}

// unchanged is an error if the file is not what it was when it was opened.
func (in *input) unchanged() error {
	if in.before == nil {
		return nil
	}
	now, err := in.job.File.Stat()
	if err != nil {
		return err
	}
	if was := in.before; now.Size() != was.Size() || !now.ModTime().Equal(was.ModTime()) {
		return fmt.Errorf("the file changed while it was imported (%d bytes of %s, then %d bytes of %s): import it when nothing writes to it",
			was.Size(), was.ModTime().Format(time.RFC3339Nano), now.Size(), now.ModTime().Format(time.RFC3339Nano))
	}
	return nil
}

func (in *input) close() {
	if in.job.File != nil {
		in.job.File.Close()
	}
}

// download is a source that is being fetched: a sparse temporary file.
type download struct {
	file     *os.File
	size     int64 // bytes written, or that were not because they are zeros
	modified time.Time
	progress func(done, total int64) // total is -1 when it is not known
}

// pipe reads a source that has no size. Its reads cannot be interrupted: after
// the end of ctx the last one is left to itself.
func (d *download) pipe(ctx context.Context, open func() (*os.File, error)) error {
	type result struct {
		size int64
		err  error
	}
	ch := make(chan result, 1)
	go func() {
		f, err := open()
		if err != nil {
			ch <- result{0, err}
			return
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode()&fs.ModeCharDevice != 0 {
			ch <- result{0, fmt.Errorf("it is a terminal: pipe the image into it")}
			return
		}
		w := &sparseWriter{file: d.file, wrote: func(n int64) { d.progress(n, -1) }}
		_, err = io.Copy(w, &interruptible{ctx, f})
		ch <- result{w.off, err}
	}()
	select {
	case r := <-ch:
		d.size = r.size
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// interruptible is a reader that ends with ctx, between two reads.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (r *interruptible) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
