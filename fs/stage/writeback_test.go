package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"imagefs/codec/codectest"
	"imagefs/fs/stage"
	"imagefs/remote"
	"imagefs/remote/mem"
)

// gated is a store that is away until it is opened.
type gated struct {
	*mem.Store
	open  atomic.Bool
	asked atomic.Int64
}

func (g *gated) Upload(ctx context.Context, key string) (remote.Upload, error) {
	g.asked.Add(1)
	if !g.open.Load() {
		return nil, fmt.Errorf("begin: %w", remote.ErrUnavailable)
	}
	return g.Store.Upload(ctx, key)
}

func writeBack(c *stage.Config) { c.WriteBack = true }

func TestWriteBackGoesOnWhenTheStoreIsBack(t *testing.T) {
	g := &gated{Store: mem.New()}
	e := newEnv(t, g, writeBack)
	b := image(t, "vdi", codectest.Scattered(4<<20, 10, 1))
	if err := e.copyIn("web", "disk0.vdi", b); err != nil {
		t.Fatal(err)
	}
	wait(t, "the first attempt", func() bool { return g.asked.Load() > 0 })
	f := e.spool.Lookup("web", "disk0.vdi", 0)
	if f == nil || e.cat.Has("web") {
		t.Fatal("before the store has it, the file is the spool's")
	}
	got := make([]byte, len(b))
	if _, err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, b) {
		t.Errorf("read while it waits: %v", err)
	}
	if st := e.spool.Status(); len(st) != 1 || st[0].State != stage.Sealed && st[0].State != stage.Uploading {
		t.Errorf("waiting: %+v", st)
	}
	g.open.Store(true)
	if err := e.spool.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := e.object("web", 0); !bytes.Equal(got, b) {
		t.Error("the object differs")
	}
}

func TestWriteBackRefusesAtTheClose(t *testing.T) {
	e := newEnv(t, mem.New(), writeBack)
	if err := e.copyIn("web", "disk0.vdi", noise(5000)); !errors.Is(err, stage.ErrRefused) {
		t.Errorf("close of a bad file: %v", err)
	}
}

func TestWrittenAgainWhileItWaits(t *testing.T) {
	g := &gated{Store: mem.New()}
	e := newEnv(t, g, writeBack)
	old := noise(300_000)
	if err := e.copyIn("web", "disk0.raw", old); err != nil {
		t.Fatal(err)
	}
	wait(t, "the first attempt", func() bool { return g.asked.Load() > 0 })
	h := e.reopen(e.spool.Lookup("web", "disk0.raw", 0), os.O_WRONLY|os.O_TRUNC)
	fresh := noise(200_000)
	fill(t, h, fresh)
	if err := h.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Release()
	g.open.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := e.spool.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if _, cd := e.object("web", 0); cd.Original.SHA256 != sum(fresh) {
		t.Error("the disk is not what was written last")
	}
}

func TestClosedSpoolIsResumed(t *testing.T) {
	g := &gated{Store: mem.New()}
	e := newEnv(t, g, writeBack)
	b := image(t, "vhd", codectest.Scattered(4<<20, 10, 1))
	if err := e.copyIn("web", "disk0.vhd", b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // an unmount that may not wait
	if err := e.spool.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close with a file that waits: %v", err)
	}
	g.open.Store(true)
	e.open()
	wait(t, "the file to be stored by the next", func() bool { return e.cat.Has("web") })
	if got, _ := e.object("web", 0); !bytes.Equal(got, b) {
		t.Error("the object differs")
	}
	wait(t, "the spool to be empty", func() bool { return len(e.spool.Status()) == 0 })
}
