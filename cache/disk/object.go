package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Identity names bytes that never change: a version of an object in a store.
type Identity struct {
	Store string // tells it from every other store
	Key   string
	ETag  string // of the version; without one nothing is kept
	Size  int64  // bytes of the object
}

// sum is the identity in the length of a hash. Lengths stand before the texts, so
// that no two identities make the same bytes.
func (id Identity) sum() [sha256.Size]byte {
	var b []byte
	for _, s := range []string{id.Store, id.Key, id.ETag} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(id.Size)))
}

// Object is the blocks of one version of an object. Its methods may be called
// concurrently, and after the cache was closed.
type Object struct {
	c   *Cache
	sum [sha256.Size]byte
	off bool // nothing is kept of it
}

// Object returns the blocks of id. It does no I/O.
func (c *Cache) Object(id Identity) *Object {
	return &Object{c: c, sum: id.sum(), off: id.ETag == ""}
}

// name is the path of the block at off, below the folder of blocks.
func (o *Object) name(off int64) string {
	var b [sha256.Size + 8]byte
	copy(b[:], o.sum[:])
	binary.BigEndian.PutUint64(b[sha256.Size:], uint64(off))
	sum := sha256.Sum256(b[:])
	text := hex.EncodeToString(sum[:nameBytes])
	return text[:2] + "/" + text[2:]
}

const (
	// nameBytes is the part of a hash in a block's name.
	nameBytes = 20
	// useEvery is how old the time of a block's last use may be at another.
	useEvery = time.Minute
)

// Load fills p with the block at off, whole, and reports whether it is kept.
// When it is not, p may hold anything.
func (o *Object) Load(p []byte, off int64) bool {
	c := o.c
	if o.off || c.isClosed() {
		return false
	}
	name := o.name(off)
	used, err := o.read(p, off, filepath.Join(c.blocks, name))
	var bad mismatch
	switch {
	case err == nil:
		c.n.hits.Add(1)
		c.n.readBytes.Add(uint64(len(p)))
		if time.Since(used) > useEvery {
			c.add(job{name: name, do: (*Cache).use})
		}
		return true
	case errors.Is(err, os.ErrNotExist):
	case errors.As(err, &bad):
		c.n.damaged.Add(1)
		c.report(fmt.Errorf("block %q is fetched anew: %w", name, err))
		c.add(job{name: name, do: (*Cache).forget})
	case errors.Is(err, syscall.EIO):
		c.failed(err)
		c.add(job{name: name, do: (*Cache).forget})
	default:
		c.failed(err)
	}
	c.n.misses.Add(1)
	return false
}

// read reads a block and returns when it was used last. What is not the block is
// a mismatch.
func (o *Object) read(p []byte, off int64, path string) (used time.Time, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return used, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return used, err
	}
	if want := int64(headerSize + len(p)); info.Size() != want {
		return used, mismatch(fmt.Sprintf("%d bytes, not %d", info.Size(), want))
	}
	var h header
	if err := full(f, h[:], 0); err != nil {
		return used, err
	}
	if err := full(f, p, headerSize); err != nil {
		return used, err
	}
	return info.ModTime(), h.check(o, p, off)
}

// full fills p from off.
func full(f *os.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	} else if err == io.EOF {
		return mismatch("cut short while it was read")
	}
	return err
}

// Save is given the block at off, just fetched. It returns at once, and keeps p
// until it is written: p must never be changed.
func (o *Object) Save(p []byte, off int64) {
	if o.off {
		return
	}
	if !o.c.add(o.job(p, off)) {
		o.c.n.dropped.Add(1)
	}
}

// Store is Save that waits until the block is kept, or is not: ErrNoRoom,
// ErrDropped, or what the file system says. It is not bound by the queue's size:
// its callers are what bounds it.
func (o *Object) Store(ctx context.Context, p []byte, off int64) error {
	if o.off {
		return errors.New("an object without an ETag is not kept")
	}
	j := o.job(p, off)
	j.done = make(chan error, 1)
	if !o.c.add(j) {
		return ErrDropped
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *Object) job(p []byte, off int64) job {
	return job{name: o.name(off), do: (*Cache).keep, data: p, sum: o.sum, off: off}
}

// headerSize is the length of a header.
const headerSize = 64

// header stands before a block's bytes in its file, integers little-endian:
//
//	0   magic, which ends in the version of the layout
//	8   length of the block
//	12  CRC-32C of its bytes
//	16  sum of the identity
//	48  offset of the block
//	56  zeros
//	60  CRC-32C of the bytes before
type header [headerSize]byte

const magic = "ifsblk\x00\x01"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func makeHeader(sum [sha256.Size]byte, p []byte, off int64) (h header) {
	copy(h[:], magic)
	binary.LittleEndian.PutUint32(h[8:], uint32(len(p)))
	binary.LittleEndian.PutUint32(h[12:], crc32.Checksum(p, castagnoli))
	copy(h[16:], sum[:])
	binary.LittleEndian.PutUint64(h[48:], uint64(off))
	binary.LittleEndian.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	return h
}

// mismatch says in what a file is not the block that was looked for.
type mismatch string

func (m mismatch) Error() string { return string(m) }

// check holds what was read against what was looked for.
func (h *header) check(o *Object, p []byte, off int64) error {
	want := makeHeader(o.sum, p, off)
	switch {
	case *h == want:
		return nil
	case binary.LittleEndian.Uint32(h[60:]) != crc32.Checksum(h[:60], castagnoli):
		return mismatch("another checksum of the header")
	case !bytes.Equal(h[16:60], want[16:60]):
		return mismatch("another identity")
	case !bytes.Equal(h[12:16], want[12:16]):
		return mismatch("another checksum")
	}
	return mismatch("another layout")
}
