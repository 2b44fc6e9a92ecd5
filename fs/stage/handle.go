package stage

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrGone says that the file has left the spool: its name is to be looked up
// again.
var ErrGone = errors.New("the staged file is a disk by now, or was removed")

// ErrBusy says that another program is writing the file.
var ErrBusy = errors.New("the file is being written by another program")

// Handle is one opening of a file.
type Handle struct {
	f        *File
	writable bool
	readable bool
	wrote    atomic.Bool // since it was last flushed
}

// Open opens the file with the flags of open(2), of which the access mode and
// O_TRUNC count. Cutting what another handle writes is [ErrBusy].
func (f *File) Open(ctx context.Context, flags int) (*Handle, error) {
	mode := flags & syscall.O_ACCMODE
	h := &Handle{f: f, writable: mode != os.O_RDONLY, readable: mode != os.O_WRONLY}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, ErrGone
	}
	if h.writable && flags&os.O_TRUNC != 0 && f.writers > 0 {
		f.mu.Unlock()
		return nil, ErrBusy
	}
	f.handles++
	if h.writable {
		f.writers++
		f.stopQuiet()
	}
	f.mu.Unlock()
	f.s.unclaim(f)
	if h.writable && flags&os.O_TRUNC != 0 {
		if a, err := f.Attr(); err != nil || a.Size > 0 {
			if err == nil {
				err = f.Truncate(ctx, 0)
			}
			if err != nil {
				h.Release()
				return nil, err
			}
		} else {
			f.dropBase()
		}
	}
	return h, nil
}

// dropBase makes the file begin empty, whatever it replaces.
func (f *File) dropBase() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.copied = true
}

// File is what was opened.
func (h *Handle) File() *File { return h.f }

// ReadAt reads what was written so far.
func (h *Handle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return h.f.ReadAt(ctx, p, off)
}

// WriteAt writes p at off.
func (h *Handle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.wrote.Store(true)
	return h.f.WriteAt(ctx, p, off)
}

// Truncate cuts or extends the file.
func (h *Handle) Truncate(ctx context.Context, size int64) error {
	h.wrote.Store(h.wrote.Load() || h.f.untouchedSize() != size)
	return h.f.Truncate(ctx, size)
}

// Allocate is fallocate(2).
func (h *Handle) Allocate(ctx context.Context, off, n int64, mode uint32) error {
	h.wrote.Store(true)
	return h.f.Allocate(ctx, off, n, mode)
}

// Flush is called at each close(2). A handle that only writes, has written and
// bears a final name commits the file: the error is the verdict on it.
func (h *Handle) Flush(ctx context.Context) error {
	if h.readable || !h.writable || !h.f.final() {
		return nil
	}
	if !h.wrote.Swap(false) {
		return h.f.touch(ctx)
	}
	return h.f.Commit(ctx)
}

// touch gives the disk that the file was to replace the time that was set, when
// nothing else was done: that is how touch(1) works.
func (f *File) touch(ctx context.Context) error {
	f.mu.Lock()
	modified := f.rec.Modified
	if !f.untouched() || modified.IsZero() {
		f.mu.Unlock()
		return nil
	}
	f.rec.Modified = time.Time{}
	folder, name := f.rec.Folder, f.rec.Name
	f.mu.Unlock()
	t, err := ParseName(f.s.cfg.Exts, folder, name)
	if err != nil {
		return err
	}
	return f.s.cfg.Catalog.Touch(context.WithoutCancel(ctx), t.Image, t.Number, modified)
}

// untouched reports whether the file is a replacement that nobody has written
// to. mu is held.
func (f *File) untouched() bool {
	return f.rec.Replace && f.rec.State == Writing && !f.dirty && !f.gone
}

// Release ends the handle. A file that was written through handles that also
// read is committed when it has been quiet for a while.
func (h *Handle) Release() {
	f := h.f
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handles--
	if h.writable {
		f.writers--
		f.startQuiet() // but never for having been looked at
	}
	if f.handles == 0 && !f.tidying && (f.gone || f.removed || f.untouched() && !f.s.shown(f)) {
		f.discard()
	}
}

// Quiet tells that the file was changed without a handle, by its name.
func (f *File) Quiet() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.startQuiet()
}

// startQuiet starts waiting for a quiet period, if that is what the file is
// about to be committed after. mu is held.
func (f *File) startQuiet() {
	if f.writers > 0 || !f.dirty || f.waiting || f.gone || f.removed || f.rec.State != Writing || !f.rec.final() {
		return
	}
	f.stopQuiet()
	f.quiet = time.AfterFunc(f.s.cfg.Quiet, func() { f.s.background(f) })
}

// stopQuiet ends the waiting. mu is held.
func (f *File) stopQuiet() {
	if f.quiet != nil {
		f.quiet.Stop()
		f.quiet = nil
	}
}

// final reports whether the file's name is one that it is committed under.
func (f *File) final() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rec.final()
}

// discard removes the file's folder, when nothing of it is left in the store
// that the folder tells of. mu is held, no handle is left.
func (f *File) discard() {
	f.closed = true
	f.stopQuiet()
	sent := f.sent
	f.sent = nil
	remove := func() {
		sent.abort()
		f.data.Close()
		if err := os.RemoveAll(f.dir); err != nil {
			f.s.cfg.Log.Warn("staged file is left over", "path", f.dir, "err", err)
		}
	}
	if sent != nil {
		go remove()
	} else {
		remove()
	}
	f.s.forget(f)
}
