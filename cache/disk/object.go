package disk

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// Object is the units of one version of an object. Its methods may be called
// concurrently, and after the cache was closed.
type Object struct {
	c    *Cache
	sum  [sha256.Size]byte
	size int64 // bytes
	off  bool  // nothing is kept of it
}

// Object returns the units of id. It does no I/O.
func (c *Cache) Object(id Identity) *Object {
	return &Object{c: c, sum: id.sum(), size: id.Size, off: id.ETag == ""}
}

// name is the path of the chunk at an offset, below the folder of chunks. The layout
// is a part of it: files of another one are found by no lookup.
func (o *Object) name(at int64) string {
	var b [len(magic) + sha256.Size + 8]byte
	copy(b[:], magic)
	copy(b[len(magic):], o.sum[:])
	binary.BigEndian.PutUint64(b[len(magic)+sha256.Size:], uint64(at))
	sum := sha256.Sum256(b[:])
	text := hex.EncodeToString(sum[:nameBytes])
	return text[:2] + "/" + text[2:]
}

const (
	// nameBytes is the part of a hash in a chunk's name.
	nameBytes = 20
	// useEvery is how old the time of a chunk's last use may be at another.
	useEvery = time.Minute
)

// whole reports whether p at off is whole units of the object.
func (o *Object) whole(p []byte, off int64) bool {
	n := int64(len(p))
	return off >= 0 && off%Unit == 0 && n > 0 && n <= o.size-off && (n%Unit == 0 || n == o.size-off)
}

// head is the part of p at off that lies in one chunk.
func head(p []byte, off int64) []byte {
	n := min(int64(len(p)), Chunk-off%Chunk)
	return p[:n:n]
}

// Load looks at the units of p at off, which is a multiple of Unit; p is several of
// them or ends with the object. It returns how many bytes, from the first on, are of
// one status: kept, and then they are filled in, or not kept. There may be more of
// that status: a call does not look beyond one chunk. What p has behind is undefined.
func (o *Object) Load(p []byte, off int64) (n int, kept bool) {
	c := o.c
	if o.off || c.isClosed() || !o.whole(p, off) {
		return len(p), false
	}
	p = head(p, off)
	name := o.name(off - off%Chunk)
	n, kept, used, err := o.read(p, off, filepath.Join(c.blocks, name))
	if kept {
		c.n.hits.Add(uint64(unitsOf(n)))
		c.n.readBytes.Add(uint64(n))
		if time.Since(used) > useEvery {
			c.add(job{name: name, do: (*Cache).use})
		}
		return n, true
	}
	c.n.misses.Add(uint64(unitsOf(n)))
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return n, false
	}
	if isMismatch(err) {
		c.n.damaged.Add(uint64(unitsOf(n)))
		c.report(fmt.Errorf("chunk %q is fetched anew from offset %d on: %w", name, off, err))
	} else {
		c.failed(err)
	}
	if damaged(err) {
		c.add(job{name: name, do: (*Cache).recheck, o: o, off: off})
	}
	return n, false
}

// read is Load in one chunk. It also returns when that was used last, and why units
// are not kept that should be.
func (o *Object) read(p []byte, off int64, path string) (n int, kept bool, used time.Time, err error) {
	h, first := o.header(off)
	f, err := o.c.openChunk(path, os.O_RDONLY, &h)
	if err != nil {
		return len(p), false, used, err
	}
	defer f.Close()
	run, kept := h.run(first, unitsOf(len(p)))
	n = min(run*Unit, len(p))
	if !kept {
		return n, false, used, nil
	}
	info, err := f.Stat()
	if err != nil {
		return n, false, used, err
	}
	if n, err = h.read(f, p[:n], first); n == 0 {
		return min(Unit, len(p)), false, used, err
	}
	return n, true, info.ModTime(), nil // what is behind is asked for again
}

// header is that of a new chunk for the unit at off, and which one of it that is.
func (o *Object) header(off int64) (h header, unit int) {
	in := off % Chunk
	return header{sum: o.sum, at: off - in}, int(in / Unit)
}

// Save is given the bytes at off, just fetched, in whole units: see Load. It returns
// at once, and keeps p until it is written: p must never be changed.
func (o *Object) Save(p []byte, off int64) {
	if o.off {
		return
	}
	if !o.whole(p, off) {
		o.c.n.dropped.Add(uint64(unitsOf(len(p))))
		return
	}
	for len(p) > 0 {
		part := head(p, off)
		if !o.c.add(o.job(part, off)) {
			o.c.n.dropped.Add(uint64(unitsOf(len(part))))
		}
		p, off = p[len(part):], off+int64(len(part))
	}
}

// Store is Save that waits until all of p is kept, or some of it is not: ErrNoRoom,
// ErrDropped, or what the file system says. After an error p may still be used. It
// is not bound by the queue's size: its callers are what bounds it.
func (o *Object) Store(ctx context.Context, p []byte, off int64) error {
	if o.off {
		return errors.New("an object without an ETag is not kept")
	}
	if !o.whole(p, off) {
		return fmt.Errorf("%d bytes at %d are no units of an object of %d bytes", len(p), off, o.size)
	}
	jobs := 0
	done := make(chan error, len(p)/Chunk+2) // the writer never waits
	for len(p) > 0 {
		part := head(p, off)
		j := o.job(part, off)
		j.done = done
		if !o.c.add(j) {
			return ErrDropped
		}
		jobs++
		p, off = p[len(part):], off+int64(len(part))
	}
	for range jobs {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (o *Object) job(p []byte, off int64) job {
	return job{name: o.name(off - off%Chunk), do: (*Cache).keep, data: p, o: o, off: off}
}
