package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
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

// job is something to do for one block, in order, by the writer.
type job struct {
	name string // of the block's file
	do   func(*Cache, job) error
	done chan error // is told the end, when somebody waits

	// Of a block to keep:
	data []byte
	sum  [sha256.Size]byte // of the identity
	off  int64
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
	folders [folders]struct{ blocks, bytes int64 }
	next    int // folder to evict from
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
		c.n.dropped.Add(1)
	}
	c.mu.Lock()
	c.waiting -= int64(len(j.data))
	c.mu.Unlock()
	if j.done != nil {
		j.done <- err
	}
}

// keep writes a block.
func (c *Cache) keep(j job) error {
	need := footprint(headerSize + int64(len(j.data)))
	if err := c.makeRoom(need); err != nil {
		c.report(err)
		return err
	}
	h := makeHeader(j.sum, j.data, j.off)
	err := c.replace(j.name, h[:], j.data)
	if full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT); full && c.evict() > 0 {
		err = c.replace(j.name, h[:], j.data)
	}
	if err != nil {
		c.failed(err)
		return err
	}
	c.n.written.Add(1)
	c.n.writtenBytes.Add(uint64(len(j.data)))
	return nil
}

// replace makes a block's file, whole or not at all.
func (c *Cache) replace(name string, head, data []byte) error {
	// A killed process leaves at most this one file, which the next replaces.
	temp, final := filepath.Join(c.blocks, "new"), filepath.Join(c.blocks, name)
	err := c.sys.write(temp, head, data)
	if errors.Is(err, os.ErrNotExist) { // somebody emptied the folder
		if err = os.Mkdir(c.blocks, 0o700); err == nil {
			err = c.sys.write(temp, head, data)
		}
	}
	var was, old int64 // blocks and bytes that are replaced
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
	c.account(folderOf(name), 1-was, footprint(int64(len(head)+len(data)))-old)
	return nil
}

// use notes that a block was used.
func (c *Cache) use(j job) error {
	now := time.Now()
	err := os.Chtimes(filepath.Join(c.blocks, j.name), now, now)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.failed(err)
	}
	return err
}

// forget removes a block.
func (c *Cache) forget(j job) error {
	_, err := c.remove(j.name)
	return err
}

// remove removes a block and returns the bytes that it took.
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

// writeFile makes a file of two pieces.
func writeFile(name string, head, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(head); err == nil {
		_, err = f.Write(data)
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close %q: %w", name, cerr)
	}
	return err
}
