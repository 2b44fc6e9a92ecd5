package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imagefs/codec"
	"imagefs/remote"
)

// File is one file that is copied in. Its methods are safe for concurrent use;
// reads and writes of bytes do not wait for each other, but all of them wait
// while a commit looks at the file.
type File struct {
	ID string // names its folder in the spool

	s    *Spool
	dir  string
	data *os.File
	base codec.Disk // bytes to begin with, of the file it replaces; or nil

	io       sync.RWMutex   // shared by whoever changes bytes, alone by a commit
	first    sync.Mutex     // of changes: held while base is copied
	starting sync.WaitGroup // of what begins a stream

	mu      sync.Mutex
	rec     record            // guarded by mu
	attr    Attr              // guarded by mu
	xattrs  map[string][]byte // guarded by mu
	copied  bool              // guarded by mu; base is in data, or not wanted
	dirty   bool              // guarded by mu; changed since it was last looked at
	verdict error             // guarded by mu; of that look
	good    *Checked          // guarded by mu; what it found good, while it is sealed
	writers int               // guarded by mu; handles that may write
	handles int               // guarded by mu; all handles
	gone    bool              // guarded by mu; committed: the catalog shows it
	removed bool              // guarded by mu; nobody but its handles wants it
	closed  bool              // guarded by mu; and there is none: its bytes are gone
	sent    *stream           // guarded by mu; parts sent while it is written
	end     int64             // guarded by mu; of what was ever written
	tried   bool              // guarded by mu; to begin such a stream
	quiet   *time.Timer       // guarded by mu; commits when it ends
	tidying bool              // guarded by mu; stays until its earlier uploads are ended
	waiting bool              // guarded by mu; complete, and waits for others beside it
	done    int64             // guarded by mu; bytes that the store took
	total   int64             // guarded by mu; of so many
}

// Attr is what clients set and read back. Owner and mode end with the commit.
type Attr struct {
	Mode     uint32
	UID, GID uint32
	Modified time.Time // zero until a client sets it: the time of the last write holds
	Size     int64
	Blocks   int64 // of 512 bytes
}

// Attr describes the file as it is now.
func (f *File) Attr() (Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return Attr{}, ErrGone
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.data.Fd()), &st); err != nil {
		return Attr{}, fmt.Errorf("stat staged file: %w", err)
	}
	a := f.attr
	a.Size, a.Blocks = st.Size, st.Blocks
	if f.base != nil && !f.copied {
		a.Size, a.Blocks = f.base.Size(), codec.Ceil(f.base.Size(), 512)
	}
	if a.Modified = f.rec.Modified; a.Modified.IsZero() {
		a.Modified = time.Unix(st.Mtim.Unix())
	}
	return a, nil
}

// SetMode, SetOwner and SetModified keep what a client sets.
func (f *File) SetMode(mode uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attr.Mode = mode & 0o7777
}

// SetOwner keeps an owner.
func (f *File) SetOwner(uid, gid uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attr.UID, f.attr.GID = uid, gid
}

// SetModified keeps the time of the last modification, which becomes that of
// the disk.
func (f *File) SetModified(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Modified = t
}

// Xattr returns an extended attribute that was set.
func (f *File) Xattr(name string) (value []byte, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, ok = f.xattrs[name]
	return value, ok
}

// Limits of the attributes that a file keeps until its commit.
const (
	maxXattrs     = 64
	maxXattrValue = 64 << 10
)

// SetXattr keeps an extended attribute; a nil value removes it.
func (f *File) SetXattr(name string, value []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if value == nil {
		if _, ok := f.xattrs[name]; !ok {
			return syscall.ENODATA
		}
		delete(f.xattrs, name)
		return nil
	}
	if len(value) > maxXattrValue || len(f.xattrs) >= maxXattrs {
		return fmt.Errorf("attribute %q of %d bytes: %w", name, len(value), syscall.ENOSPC)
	}
	if f.xattrs == nil {
		f.xattrs = make(map[string][]byte)
	}
	f.xattrs[name] = append([]byte{}, value...)
	return nil
}

// Xattrs are the names of the attributes that were set.
func (f *File) Xattrs() (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.xattrs {
		names = append(names, name)
	}
	return names
}

// ReadAt reads what was written so far; io.EOF at the end.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.mu.Lock()
	base := f.base
	if f.copied {
		base = nil
	}
	f.mu.Unlock()
	if base != nil {
		return base.ReadAt(ctx, p, off)
	}
	return f.data.ReadAt(p, off)
}

// WriteAt writes p at off. What lies between the end and off reads as zeros.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	err := f.change(ctx, off, off+int64(len(p)), true, func() error {
		_, err := f.data.WriteAt(p, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Truncate cuts or extends the file to size bytes. To the size that it begins
// with, it changes nothing.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if f.untouchedSize() == size {
		return nil
	}
	// Extended with zeros, it is not written up to there yet.
	return f.change(ctx, size, 0, size > 0, func() error {
		f.mu.Lock()
		f.end = min(f.end, size)
		f.mu.Unlock()
		return f.data.Truncate(size)
	})
}

// untouchedSize is the size of the file that this one replaces, while nothing
// was changed, and else -1.
func (f *File) untouchedSize() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.base == nil || f.copied {
		return -1
	}
	return f.base.Size()
}

// Allocate is fallocate(2) with a mode of it: holes are punched, ranges zeroed
// and space reserved; what moves bytes is not supported.
func (f *File) Allocate(ctx context.Context, off, n int64, mode uint32) error {
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if mode&^known != 0 {
		return fmt.Errorf("fallocate mode %#x: %w", mode, syscall.EOPNOTSUPP)
	}
	return f.change(ctx, off, 0, true, func() error {
		return unix.Fallocate(int(f.data.Fd()), mode, off, n)
	})
}

// change does what changes bytes from off on and leaves bytes up to end
// written. keep asks for the bytes of the file that this one replaces.
func (f *File) change(ctx context.Context, off, end int64, keep bool, do func() error) error {
	f.io.RLock()
	defer f.io.RUnlock()
	if err := f.awaken(ctx, keep); err != nil {
		return err
	}
	f.mu.Lock()
	s := f.sent
	f.mu.Unlock()
	s.touch(off)
	if err := do(); err != nil {
		return fmt.Errorf("staged file: %w", bare(err))
	}
	f.mu.Lock()
	f.end = max(f.end, end)
	s = f.sent // it may have begun meanwhile
	f.mu.Unlock()
	s.touch(off) // again: what was read meanwhile may be old
	if s != nil {
		s.advance(end)
	} else if end >= remote.PartSize(1) {
		f.startStream()
	}
	return nil
}

// awaken makes the file one that is written: it notes the change, takes a
// refusal back, and sees that the bytes to begin with are there.
func (f *File) awaken(ctx context.Context, keep bool) error {
	if err := f.begin(ctx, keep); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrGone
	}
	f.dirty = true
	if f.removed || f.rec.State == Writing && !f.gone && !f.waiting {
		return nil
	}
	return f.rewrite()
}

// begin copies the bytes of the file that is replaced, if it was not done and
// they are to be kept. Other changes wait; reads and look-ups do not.
func (f *File) begin(ctx context.Context, keep bool) error {
	f.first.Lock()
	defer f.first.Unlock()
	f.mu.Lock()
	copied := f.copied || f.base == nil
	f.mu.Unlock()
	if copied {
		return nil
	}
	if keep {
		if err := f.copyBase(ctx); err != nil {
			return err
		}
	}
	f.dropBase()
	return nil
}

// copyBase copies the bytes of the file that is replaced.
func (f *File) copyBase(ctx context.Context) error {
	if err := f.data.Truncate(f.base.Size()); err != nil {
		return fmt.Errorf("staged file: %w", bare(err))
	}
	buf := make([]byte, 1<<20)
	for e, err := range f.base.Extents(ctx, 0, f.base.Size()) {
		if err != nil {
			return err
		}
		for off := e.Off; !e.Zero && off < e.Off+e.Len; {
			p := buf[:min(int64(len(buf)), e.Off+e.Len-off)]
			if n, err := f.base.ReadAt(ctx, p, off); n < len(p) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("copy what is to be changed: %w", err)
			}
			if _, err := f.data.WriteAt(p, off); err != nil {
				return fmt.Errorf("staged file: %w", bare(err))
			}
			off += int64(len(p))
		}
	}
	return nil
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (f *File) Seek(off int64, whence int) (int64, error) {
	n, err := unix.Seek(int(f.data.Fd()), off, whence)
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Sync makes the bytes and the name durable: they survive the machine.
func (f *File) Sync() error {
	if err := f.data.Sync(); err != nil {
		return fmt.Errorf("staged file: %w", bare(err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.removed {
		return nil
	}
	return f.rec.save(f.dir, true)
}

// bare strips the path of the spool, which says nothing to a client.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Status is what .imagefs/uploads tells of a file.
type Status struct {
	Folder, Name string
	State        State
	Size         int64
	Sent, Total  int64 // bytes for the store: taken, and all
	Error        string
	Path         string // of its bytes
}

// Status describes the file for people.
func (f *File) Status() Status {
	a, _ := f.Attr()
	f.mu.Lock()
	defer f.mu.Unlock()
	return Status{f.rec.Folder, f.rec.Name, f.rec.State, a.Size, f.done, f.total, f.rec.Error, filepath.Join(f.dir, dataName)}
}
