package disk

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// All of this file but footprints and space is called by the writer alone.

const (
	// folders is how many there are for chunks, by the first byte of their names.
	folders = 256
	// sample is the least number of chunks that an eviction compares.
	sample = 256
	// share is which part of them it removes: one in share.
	share = 8
	// maxFree is the most that is left free on the file system, in bytes.
	maxFree = 1 << 30
	// freePart is which part is left free where that is less: one in freePart.
	freePart = 20
)

// footprint is what a file of n bytes takes on the disk, in bytes.
func footprint(n int64) int64 { return (n + 4095) &^ 4095 }

// Footprint is what the units from from to to of an object take of [Config.Size], in
// bytes, at most.
func Footprint(from, to int64) int64 {
	if from >= to {
		return 0
	}
	chunks := (to-1)/Chunk - from/Chunk + 1
	units := (to-1)/Unit - from/Unit + 1
	return chunks*headerSize + units*Unit
}

// space is what a file system has free for its users, and has in all, in bytes.
func space(dir string) (free, size int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(dir, &st)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// kept is a chunk as its folder lists it.
type kept struct {
	name string // below the folder of chunks
	size int64  // that it takes
	used time.Time
}

// folderName is the name of a folder of chunks.
func folderName(folder int) string { return fmt.Sprintf("%02x", folder) }

// folderOf is the folder that a chunk is in.
func folderOf(name string) int {
	n, _ := strconv.ParseUint(name[:2], 16, 8)
	return int(n)
}

// list reads one folder. It corrects what was counted of it: somebody else may
// have removed blocks.
func (c *Cache) list(folder int) []kept {
	var found []kept
	var bytes int64
	name := folderName(folder)
	entries, err := os.ReadDir(filepath.Join(c.blocks, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.failed(err)
	}
	for _, e := range entries {
		if b, err := hex.DecodeString(e.Name()); err != nil || len(b) != nameBytes-1 || !e.Type().IsRegular() {
			continue // not ours
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		k := kept{name + "/" + e.Name(), footprint(info.Size()), info.ModTime()}
		found = append(found, k)
		bytes += k.size
	}
	f := &c.w.folders[folder]
	c.account(folder, int64(len(found))-f.chunks, bytes-f.bytes)
	return found
}

// account adds to what a folder holds.
func (c *Cache) account(folder int, chunks, bytes int64) {
	f := &c.w.folders[folder]
	f.chunks += chunks
	f.bytes += bytes
	c.n.chunks.Add(chunks)
	c.n.bytes.Add(bytes)
}

// count finds out what the folder holds, and makes it fit.
func (c *Cache) count() {
	for i := range folders {
		if c.late() {
			return
		}
		c.list(i)
	}
	c.shrink()
	c.n.counted.Store(true)
}

// shrink evicts what is too much. It asks the file system once: one that tells
// later what was freed must not cost all chunks.
func (c *Cache) shrink() {
	for n := c.excess(0); n > 0 && !c.late(); {
		freed := c.evict()
		if freed == 0 {
			return
		}
		n -= freed
	}
}

// excess is how many bytes too many there are for need more; 0 or less if none.
func (c *Cache) excess(need int64) int64 {
	over := c.n.bytes.Load() + need - c.cfg.Size
	free, size, err := c.sys.space(c.blocks)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) { // somebody emptied it; it is made anew
			c.failed(err)
		}
		return over
	}
	return max(over, min(size/freePart, maxFree)-(free-need))
}

// makeRoom evicts until need bytes fit. For a file system that is short of room
// it evicts once for each write, for the same reason as shrink.
func (c *Cache) makeRoom(need int64) error {
	for c.n.bytes.Load()+need > c.cfg.Size {
		if c.evict() == 0 {
			break
		}
	}
	if c.excess(need) > 0 {
		c.evict()
	}
	if n := c.excess(need); n > 0 {
		return fmt.Errorf("%w: %d bytes too few for %d more", ErrNoRoom, n, need)
	}
	return nil
}

// evict removes some of the chunks in the next folders and returns the bytes that
// are free by that; 0 if nothing could be removed.
func (c *Cache) evict() (freed int64) {
	var list []kept
	for n := 0; n < folders && len(list) < sample; n++ {
		list = append(list, c.list(c.w.next)...)
		c.w.next = (c.w.next + 1) % folders
	}
	slices.SortFunc(list, func(a, b kept) int { return a.used.Compare(b.used) })
	for _, k := range list[:(len(list)+share-1)/share] {
		n, err := c.remove(k.name)
		if err != nil {
			break
		}
		freed += n
		c.n.evicted.Add(1)
	}
	return freed
}
