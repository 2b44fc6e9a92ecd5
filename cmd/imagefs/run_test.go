package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/remote/remotetest"
)

// result is what a command line printed and ended with.
type result struct {
	out, err string
	code     int
}

// run runs a command line as main does, but for what is a terminal.
func run(t *testing.T, args ...string) result {
	t.Helper()
	dir := t.TempDir()
	swap := func(f **os.File, name string) *os.File {
		was := *f
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		*f = file
		return was
	}
	stdout, stderr := swap(&os.Stdout, "out"), swap(&os.Stderr, "err")
	var r result
	r.code = Main(args, os.Stderr)
	read := func(f *os.File) string {
		defer f.Close()
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	r.out, r.err = read(os.Stdout), read(os.Stderr)
	os.Stdout, os.Stderr = stdout, stderr
	return r
}

// want fails unless the command ended with a code and told people words.
func (r result) want(t *testing.T, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("got code %d, want %d; it said:\n%s", r.code, code, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.out+r.err, w) {
			t.Errorf("it did not say %q, but:\n%s%s", w, r.out, r.err)
		}
	}
}

// events are the events that an import with --json printed.
func (r result) events(t *testing.T) []event {
	t.Helper()
	var list []event
	dec := json.NewDecoder(strings.NewReader(r.out))
	for {
		var e event
		err := dec.Decode(&e)
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatalf("not events: %v in:\n%s", err, r.out)
		}
		list = append(list, e)
	}
}

// parse reads what a command with --json printed.
func parse[T any](t *testing.T, r result) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		t.Fatalf("not JSON: %v in:\n%s%s", err, r.out, r.err)
	}
	return v
}

// world is a store in a directory and a home for the spool. When the test
// ends nothing is left in the spool.
type world struct {
	store, spool, files string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t.TempDir(), t.TempDir(), t.TempDir()}
	t.Setenv("XDG_STATE_HOME", w.spool)
	t.Cleanup(func() {
		err := filepath.WalkDir(w.spool, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("left in the spool: %s", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	return w
}

// file writes a file and returns its path.
func (w *world) file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(w.files, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// objects are the paths of all that the store holds of disks and entries.
func (w *world) objects(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, glob := range []string{"catalog/*", "disks/*", "disks/.imagefs-*", "*.*"} {
		found, err := filepath.Glob(filepath.Join(w.store, glob))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if filepath.Base(path) != ".imagefs-lock" {
				list = append(list, path)
			}
		}
	}
	return list
}

// content is data of a raw disk: not a multiple of a sector, with a hole.
func content(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		if i < n/4 || i > n/2 {
			b[i] = byte(i*7+i>>8*13) ^ seed
		}
	}
	copy(b, "a raw disk")
	return b
}

// sample is a small image of a format.
func sample(t *testing.T, format string, seed uint64) []byte {
	t.Helper()
	for _, f := range all.Formats {
		if f.Name() == format {
			d := codectest.New("disk", 3<<20, seed, codectest.Range{Off: 0, Len: 300_000}, codectest.Range{Off: 2 << 20, Len: 100})
			b, err := codectest.ReadAll(codectest.Layout(t, f, d))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no format %q", format)
	return nil
}

// serveS3 is an S3 server with the credentials of its bucket in the environment.
func serveS3(t *testing.T) *remotetest.Server {
	t.Helper()
	srv := remotetest.NewServer(t)
	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HTTP_PROXY", "http_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_ACCESS_KEY_ID", srv.Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", srv.Secret)
	t.Setenv("AWS_ENDPOINT_URL_S3", srv.Endpoint)
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "credentials"))
	return srv
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes, want %d, or they differ", what, len(got), len(want))
	}
}
