package disk

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// maxJobs bounds the queue where jobs have few bytes or none.
	maxJobs = 4096
	// lookEvery is the time between two looks at the free space.
	lookEvery = 10 * time.Second
)

// job is something to do for one chunk, in order, by the writer.
type job struct {
	name string // of the chunk's file
	do   func(*Cache, job) error
	done chan<- error // is told the end, when somebody waits

	// Of units to keep or to look at:
	o    *Object
	off  int64
	data []byte // to keep; inside one chunk
}

// add queues a job and reports whether there was room.
func (c *Cache) add(j job) bool {
	n := int64(len(j.data))
	c.mu.Lock()
	ok := !c.closed && (j.done != nil || c.waiting+n <= c.cfg.Queue && len(c.jobs) < maxJobs)
	if ok {
		c.jobs = append(c.jobs, j)
		c.waiting += n
	}
	c.mu.Unlock()
	if ok {
		c.signal()
	}
	return ok
}

func (c *Cache) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// writer is what the goroutine that writes knows of the folder.
type writer struct {
	folders [folders]struct{ chunks, bytes int64 }
	next    int // folder to evict from
	buf     [headerSize]byte
}

// write is the goroutine that changes the folder, the only one.
func (c *Cache) write() {
	defer close(c.done)
	c.count()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		c.mu.Lock()
		jobs, closed := c.jobs, c.closed
		c.jobs = nil
		c.mu.Unlock()
		for i, j := range jobs {
			c.run(j)
			jobs[i] = job{} // its bytes are free from here on
		}
		if len(jobs) > 0 {
			continue
		}
		if closed {
			return
		}
		select {
		case <-c.wake:
		case <-tick.C:
			c.shrink()
		}
	}
}

// run does a job, or drops it when the cache should be closed by now.
func (c *Cache) run(j job) {
	err := ErrDropped
	if !c.late() {
		err = j.do(c, j)
	}
	if err != nil && j.data != nil {
		c.n.dropped.Add(uint64(unitsOf(len(j.data))))
	}
	c.mu.Lock()
	c.waiting -= int64(len(j.data))
	c.mu.Unlock()
	if j.done != nil {
		j.done <- err
	}
}

// keep writes the units that are not there yet.
func (c *Cache) keep(j job) error {
	need := int64(headerSize + unitsOf(len(j.data))*Unit) // at most
	if err := c.makeRoom(need); err != nil {
		c.report(err)
		return err
	}
	err := c.put(j)
	if full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT); full && c.evict() > 0 {
		err = c.put(j)
	}
	if err != nil {
		c.failed(err)
	}
	return err
}

// put writes units into their chunk, or into a new one if there is none, or none
// that is right.
func (c *Cache) put(j job) error {
	h, first := j.o.header(j.off)
	final := filepath.Join(c.blocks, j.name)
	f, err := c.openChunk(final, os.O_RDWR, &h)
	switch {
	case err == nil:
		err = c.extend(f, &h, j, first)
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %q: %w", final, cerr)
		}
		return err
	case errors.Is(err, os.ErrNotExist), damaged(err):
		return c.create(final, j)
	}
	return err
}

// enter enters the units of p into a header, and returns the set of those that were
// not in it and how many bytes these are.
func (h *header) enter(p []byte, first int) (set uint, n int) {
	for i := range unitsOf(len(p)) {
		unit := first + i
		b := part(p, first, unit, 1)
		crc := crc32.Checksum(b, castagnoli)
		if h.place[unit] == 0 || h.crc[unit] != crc {
			h.add(unit, crc)
			set |= 1 << unit
			n += len(b)
		}
	}
	return set, n
}

// fill writes the units of set, of which p has the first and those behind. It returns
// where the last of them ends in the file.
func (c *Cache) fill(f *os.File, h *header, set uint, p []byte, first int) (end int64, err error) {
	err = h.each(set, func(unit, n int, off int64) error {
		b := part(p, first, unit, n)
		end = off + int64(len(b)) // slots come in their order
		return c.sys.write(f, b, off)
	})
	return end, err
}

// extend writes units into a chunk that is there. Until its header is written, last,
// it is what it was before: no other unit lies where these go.
func (c *Cache) extend(f *os.File, h *header, j job, first int) error {
	set, n := h.enter(j.data, first)
	if set == 0 {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	end, err := c.fill(f, h, set, j.data, first)
	if err != nil {
		_ = f.Truncate(size) // as before; if it cannot be, what is there counts
		if info, serr := f.Stat(); serr == nil {
			end = info.Size()
		}
	}
	c.account(folderOf(j.name), 0, footprint(max(size, end))-footprint(size))
	if err != nil {
		return err
	}
	if err = c.rewrite(f, h); err != nil {
		_, _ = c.remove(j.name) // it may be half of one header and half of another
		return err
	}
	c.wrote(set, n)
	return nil
}

// rewrite writes the header of a chunk that others may be reading.
func (c *Cache) rewrite(f *os.File, h *header) error {
	h.encode(c.w.buf[:])
	c.heading.Lock()
	defer c.heading.Unlock()
	return c.sys.write(f, c.w.buf[:], 0)
}

// create makes a chunk's file of units, whole or not at all.
func (c *Cache) create(final string, j job) error {
	// A killed process leaves at most this one file, which the next replaces.
	temp := filepath.Join(c.blocks, "new")
	h, first := j.o.header(j.off)
	set, n := h.enter(j.data, first)
	err := c.make(temp, &h, set, j.data, first)
	if errors.Is(err, os.ErrNotExist) { // somebody emptied the folder
		if err = os.Mkdir(c.blocks, 0o700); err == nil {
			err = c.make(temp, &h, set, j.data, first)
		}
	}
	var was, old int64 // chunks and bytes that are replaced
	if err == nil {
		if info, lerr := os.Lstat(final); lerr == nil {
			was, old = 1, footprint(info.Size())
		}
		err = os.Rename(temp, final)
	}
	if errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(final), 0o700); err == nil {
			err = os.Rename(temp, final)
		}
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	c.account(folderOf(j.name), 1-was, footprint(int64(headerSize+n))-old)
	c.wrote(set, n)
	return nil
}

// make makes a file of a header and the units of set.
func (c *Cache) make(name string, h *header, set uint, p []byte, first int) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	h.encode(c.w.buf[:])
	if err = c.sys.write(f, c.w.buf[:], 0); err == nil {
		_, err = c.fill(f, h, set, p, first)
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close %q: %w", name, cerr)
	}
	return err
}

// wrote counts the units of set, n bytes.
func (c *Cache) wrote(set uint, n int) {
	c.n.written.Add(uint64(bits.OnesCount(set)))
	c.n.writtenBytes.Add(uint64(n))
}

// use notes that a chunk was used.
func (c *Cache) use(j job) error {
	now := time.Now()
	err := os.Chtimes(filepath.Join(c.blocks, j.name), now, now)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.failed(err)
	}
	return err
}

// recheck looks at a unit that a reader found damaged, and forgets it if it still is:
// it may be a new one by now. A chunk that cannot be read goes whole.
func (c *Cache) recheck(j job) error {
	h, unit := j.o.header(j.off)
	f, err := c.openChunk(filepath.Join(c.blocks, j.name), os.O_RDWR, &h)
	if err == nil {
		defer f.Close()
		if h.place[unit] == 0 {
			return nil
		}
		_, err = h.read(f, make([]byte, min(Unit, j.o.size-j.off)), unit)
		if h.forget(unit); isMismatch(err) && !h.empty() && c.rewrite(f, &h) == nil {
			return nil
		}
	}
	if damaged(err) {
		_, err = c.remove(j.name)
	}
	return err
}

// remove removes a chunk and returns the bytes that it took.
func (c *Cache) remove(name string) (int64, error) {
	path := filepath.Join(c.blocks, name)
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		c.failed(err)
		return 0, err
	}
	n := footprint(info.Size())
	c.account(folderOf(name), -1, -n)
	return n, nil
}

// writeAt writes all of p at off.
func writeAt(f *os.File, p []byte, off int64) error {
	_, err := f.WriteAt(p, off)
	return err
}
