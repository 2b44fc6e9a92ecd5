package stage_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// exts are what names may end in.
var exts = stage.Exts{Disks: all.Extensions, Packages: all.PackageExtensions()}

// env is a spool over a catalog over a store.
type env struct {
	*testing.T
	dir   string
	store remote.Store
	cat   *catalog.Catalog
	spool *stage.Spool

	mu       sync.Mutex
	problems []string // guarded by mu; what was reported
}

func newEnv(t *testing.T, store remote.Store, set ...func(*stage.Config)) *env {
	t.Helper()
	e := &env{T: t, dir: t.TempDir(), store: store}
	e.open(set...)
	return e
}

// open opens catalog and spool as a new process would.
func (e *env) open(set ...func(*stage.Config)) {
	e.Helper()
	var err error
	if e.cat, err = catalog.Open(e.Context(), e.store, all.Extensions); err != nil {
		e.Fatal(err)
	}
	im, err := stage.NewImporter(e.store, e.cat, all.Formats, all.Packages)
	if err != nil {
		e.Fatal(err)
	}
	cfg := stage.Config{
		Dir: e.dir, Importer: im, Catalog: e.cat, Exts: exts, Quiet: time.Millisecond,
		Report: func(op, path string, err error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.problems = append(e.problems, op+" "+path+": "+err.Error())
		},
	}
	for _, s := range set {
		s(&cfg)
	}
	s, err := stage.Open(cfg)
	if err != nil {
		e.Fatal(err)
	}
	e.spool = s
	e.Cleanup(func() { s.Close(context.Background()) })
}

// image is the bytes of a disk in a format.
func image(t *testing.T, format string, d codec.Disk) []byte {
	t.Helper()
	for _, f := range all.Formats {
		if f.Name() == format {
			file, err := f.Layout(t.Context(), d, codec.Facts{Name: "disk0"})
			if err != nil {
				t.Fatal(err)
			}
			b, err := codectest.ReadAll(file)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no format %q", format)
	return nil
}

// create opens a new file for writing only, as cp does.
func (e *env) create(folder, name string) *stage.Handle {
	e.Helper()
	f, err := e.spool.Create(folder, name)
	if err != nil {
		e.Fatal(err)
	}
	return e.reopen(f, os.O_WRONLY)
}

func (e *env) reopen(f *stage.File, flags int) *stage.Handle {
	e.Helper()
	h, err := f.Open(e.Context(), flags)
	if err != nil {
		e.Fatal(err)
	}
	return h
}

// fill writes b from the start on, a piece at a time.
func fill(t *testing.T, h *stage.Handle, b []byte) {
	t.Helper()
	for off := 0; off < len(b); off += 100_000 {
		p := b[off:min(len(b), off+100_000)]
		if _, err := h.WriteAt(t.Context(), p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// copyIn is cp: it returns what close says.
func (e *env) copyIn(folder, name string, b []byte) error {
	e.Helper()
	h := e.create(folder, name)
	defer h.Release()
	fill(e.T, h, b)
	return h.Flush(e.Context())
}

// object returns the bytes of a disk's object, and what the catalog says of it.
func (e *env) object(name string, n int) ([]byte, catalog.Disk) {
	e.Helper()
	im, err := e.cat.Lookup(e.Context(), name)
	if err != nil {
		e.Fatal(err)
	}
	d, ok := im.Disk(n)
	if !ok {
		e.Fatalf("%s has no disk %d", name, n)
	}
	b := make([]byte, d.Object.Size)
	if err := e.store.ReadRange(e.Context(), d.Object, b, 0); err != nil {
		e.Fatal(err)
	}
	return b, d
}

// keys are all objects in the store that imports make.
func (e *env) keys() (keys []string) {
	e.Helper()
	for _, folder := range []string{"", stage.Object, "catalog/"} {
		for o, err := range e.store.List(e.Context(), folder) {
			if err != nil {
				e.Fatal(err)
			}
			keys = append(keys, o.Key)
		}
	}
	return keys
}

func (e *env) uploads() (keys []string) {
	e.Helper()
	for p, err := range e.store.(remote.Uploader).Uploads(e.Context(), "") {
		if err != nil {
			e.Fatal(err)
		}
		keys = append(keys, p.Key)
	}
	return keys
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

// wait polls until done says so.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
