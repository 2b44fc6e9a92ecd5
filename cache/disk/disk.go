package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Unit is the bytes of what is kept or not: a multiple of it from the start
	// of an object on, the last one of an object may be shorter.
	Unit = 64 << 10
	// Chunk is the bytes that one file is for, a multiple of it from the start of
	// an object on.
	Chunk = 1 << 20

	mib = 1 << 20

	minSize      = 16 * mib
	defaultQueue = 64 * mib

	// flushTime is how long Close goes on writing what is queued.
	flushTime = 10 * time.Second
	// reportEvery is the least time between two reports.
	reportEvery = time.Minute
)

var (
	// ErrLocked says that another process uses the folder.
	ErrLocked = errors.New("used by another process")
	// ErrUnsafe says that others than this user may write into the folder, and
	// so choose what is read from it.
	ErrUnsafe = errors.New("others can write into it")
	// ErrNoRoom says that units were not kept because the file system is full.
	ErrNoRoom = errors.New("no room on the file system")
	// ErrDropped says that units were not kept because the cache was closed.
	ErrDropped = errors.New("the cache is closed")
)

// Config says where units are kept, and how many.
type Config struct {
	// Dir is the folder. It is made if it does not exist; nothing in it is
	// touched but what this package made.
	Dir string
	// Size is the bytes that chunks may take there, minimum 16 MiB.
	Size int64
	// Queue is the bytes that may wait to be written, in memory. Default 64 MiB.
	Queue int64
	// Wait is how long Open waits for another process to let the folder go: one
	// that ends writes for a while what is queued. Default: not at all.
	Wait time.Duration
	// Report is told errors of the disk, at most once a minute; nil for nobody.
	Report func(error)
}

// Stats counts since Open, and states what is held now: units of up to 64 KiB, but
// for Evicted and Chunks, which are files of up to 16 units.
type Stats struct {
	Hits         uint64 `json:"hits"`          // units read
	Misses       uint64 `json:"misses"`        // units asked for and not had
	ReadBytes    uint64 `json:"read_bytes"`    // of Hits
	Written      uint64 `json:"written"`       // units
	WrittenBytes uint64 `json:"written_bytes"` // of Written
	Evicted      uint64 `json:"evicted"`       // chunks removed to make room
	Dropped      uint64 `json:"dropped"`       // units not kept: too many were waiting, or no room
	Damaged      uint64 `json:"damaged"`       // units that did not match their checksum, or whose chunk did not match its own or its identity
	Errors       uint64 `json:"errors"`        // calls of the file system that failed
	Chunks       int64  `json:"chunks"`        // held now
	Bytes        int64  `json:"bytes"`         // that Chunks take
	Waiting      int64  `json:"waiting_bytes"` // queued, in memory
	Counted      bool   `json:"counted"`       // Chunks and Bytes are all there is; until then nothing is written
}

// counters are the parts of Stats that any goroutine counts.
type counters struct {
	hits, misses, readBytes, written, writtenBytes atomic.Uint64
	evicted, dropped, damaged, errors              atomic.Uint64
	chunks, bytes                                  atomic.Int64
	counted                                        atomic.Bool
}

// Cache is a folder of chunks. All methods may be called concurrently.
type Cache struct {
	cfg    Config
	blocks string // folder of chunks
	lock   *os.File
	sys    system
	n      counters
	done   chan struct{} // closed when the writer has ended
	wake   chan struct{} // the queue is no longer empty, or the cache is closed

	heading sync.Mutex // held while the header of a chunk in place is written

	mu       sync.Mutex // guards all below
	closed   bool
	closedAt time.Time
	jobs     []job
	waiting  int64     // bytes of jobs, and of those the writer has taken
	reported time.Time // last report
	silent   int       // errors since then

	w writer // only its goroutine uses it
}

// system is what tests replace to make a disk fail or full.
type system struct {
	write func(f *os.File, p []byte, off int64) error
	space func(dir string) (free, size int64, err error)
}

// Open makes or takes over a folder. Its time does not depend on what the folder
// holds. Errors: ErrLocked, ErrUnsafe, and those of the file system.
func Open(cfg Config) (*Cache, error) {
	return open(cfg, system{write: writeAt, space: space})
}

func open(cfg Config, sys system) (*Cache, error) {
	c := &Cache{cfg: cfg, sys: sys, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	if c.cfg.Size < minSize {
		return nil, fmt.Errorf("disk cache: size %d is below the minimum of %d bytes", cfg.Size, minSize)
	}
	if c.cfg.Queue <= 0 {
		c.cfg.Queue = defaultQueue
	}
	c.blocks = filepath.Join(cfg.Dir, "blocks")
	if err := c.prepare(); err != nil {
		return nil, fmt.Errorf("disk cache %q: %w", cfg.Dir, err)
	}
	go c.write()
	return c, nil
}

// prepare makes the folders and locks them.
func (c *Cache) prepare() (err error) {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	// The folder itself is locked: a lock file could be removed and made anew.
	if c.lock, err = lock(c.cfg.Dir, time.Now().Add(c.cfg.Wait)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.lock.Close()
		}
	}()
	if err := os.Mkdir(c.blocks, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// A folder such as /tmp may be shared if its sticky bit says that what is
	// ours stays so.
	if err := trusted(unix.Stat, c.cfg.Dir, 0o002, unix.S_ISVTX); err != nil {
		return err
	}
	if err := trusted(unix.Lstat, c.blocks, 0o022, 0); err != nil {
		return err
	}
	return tag(filepath.Join(c.cfg.Dir, "CACHEDIR.TAG"))
}

// lock locks a folder as long as the file is open. It tries until a time.
func lock(dir string, until time.Time) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK && time.Now().Before(until) {
			time.Sleep(20 * time.Millisecond)
		} else if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// trusted is nil for a folder of this user's, or root's, in which the permissions
// in others are not given, unless one in unless is.
func trusted(stat func(string, *unix.Stat_t) error, dir string, others, unless uint32) error {
	var st unix.Stat_t
	if err := stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return &os.PathError{Op: "open", Path: dir, Err: unix.ENOTDIR}
	case st.Uid != uint32(os.Geteuid()) && st.Uid != 0:
		return fmt.Errorf("%q is of another user (%d): %w", dir, st.Uid, ErrUnsafe)
	case st.Mode&others != 0 && st.Mode&unless == 0:
		return fmt.Errorf("%q has permissions %03o: %w", dir, st.Mode&0o777, ErrUnsafe)
	}
	return nil
}

// tag marks a folder as a cache, as https://bford.info/cachedir/ has it.
func tag(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = f.WriteString("Signature: 8a477f597d28d172789f06886806bc55\n# What is here can be removed at any time that no program uses it.\n")
	return errors.Join(err, f.Close())
}

// Close writes what is queued, for at most ten seconds, and lets the folder go.
// Later loads find nothing and later saves are dropped. Closing again does nothing
// and also returns when the first is through.
func (c *Cache) Close() error {
	c.mu.Lock()
	first := !c.closed
	if first {
		c.closed, c.closedAt = true, time.Now()
	}
	c.mu.Unlock()
	c.signal()
	<-c.done
	if !first {
		return nil
	}
	return c.lock.Close()
}

// late reports whether Close has waited long enough.
func (c *Cache) late() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed && time.Since(c.closedAt) > flushTime
}

func (c *Cache) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Stats returns the counters. It may be called at any time.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	waiting := c.waiting
	c.mu.Unlock()
	n := &c.n
	return Stats{
		Hits: n.hits.Load(), Misses: n.misses.Load(), ReadBytes: n.readBytes.Load(),
		Written: n.written.Load(), WrittenBytes: n.writtenBytes.Load(),
		Evicted: n.evicted.Load(), Dropped: n.dropped.Load(), Damaged: n.damaged.Load(), Errors: n.errors.Load(),
		Chunks: n.chunks.Load(), Bytes: n.bytes.Load(), Waiting: waiting, Counted: n.counted.Load(),
	}
}

// failed counts an error of the file system and reports it.
func (c *Cache) failed(err error) {
	c.n.errors.Add(1)
	c.report(err)
}

// report tells of an error, unless one was told of a short time ago.
func (c *Cache) report(err error) {
	c.mu.Lock()
	now := time.Now()
	if c.cfg.Report == nil || !c.reported.IsZero() && now.Sub(c.reported) < reportEvery {
		c.silent++
		c.mu.Unlock()
		return
	}
	more := c.silent
	c.reported, c.silent = now, 0
	c.mu.Unlock()
	if more > 0 {
		err = fmt.Errorf("%w (and %d errors before it)", err, more)
	}
	c.cfg.Report(fmt.Errorf("disk cache %q: %w", c.cfg.Dir, err))
}
