package stage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"imagefs/codec"
	"imagefs/codec/qcow2"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// putDisk stores the object of a disk and describes it.
func (c *Checked) putDisk(ctx context.Context, p *member) (d catalog.EntryDisk, err error) {
	d = catalog.EntryDisk{
		Number: p.number, Format: p.format.Name(), VirtualSize: p.disk.Size(),
		Modified: c.Modified.UTC(), Declared: c.Declared,
	}
	var o remote.Object
	if p.raw != nil {
		o, err = c.putRaw(ctx, p, &d)
	} else {
		o, d.SHA256, err = c.upload(ctx, p.number, d.Format, p.src)
	}
	d.Key, d.Size = o.Key, o.Size
	if err == nil && p.index != nil {
		d.Index, err = c.im.putIndex(ctx, c, p)
		if err != nil {
			c.im.remove(ctx, []catalog.EntryDisk{d})
		}
	}
	return d, err
}

// putRaw stores a raw disk, as a compressed qcow2. The disk knows its holes.
func (c *Checked) putRaw(ctx context.Context, p *member, d *catalog.EntryDisk) (o remote.Object, err error) {
	c.sent.abort() // its bytes are not those of the object
	f, err := os.CreateTemp(c.Scratch, "object-*.qcow2")
	if err != nil {
		return o, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	sum := make(chan hashed, 1)
	go func() { sum <- hashRaw(ctx, p.raw) }()
	size, err := qcow2.Compress(ctx, f, &watched{p.raw, c.Encoding}, runtime.GOMAXPROCS(0))
	d.Format = "qcow2"
	h := <-sum
	d.Original = &catalog.Original{Format: "raw", Size: p.raw.Size(), SHA256: h.sum}
	err = cmp.Or(err, h.err)
	if err != nil {
		return o, fmt.Errorf("encode in %q: %w", filepath.Dir(f.Name()), err)
	}
	// Read back while it is sent: it counts for nothing before the commit.
	encoded := &local{f: f, size: size}
	good := make(chan error, 1)
	go func() {
		var err error
		p.index, err = verify(ctx, encoded, p.raw)
		good <- err
	}()
	o, d.SHA256, err = c.upload(ctx, p.number, d.Format, encoded)
	if verr := <-good; verr != nil && err == nil {
		_ = c.im.store.Delete(context.WithoutCancel(ctx), o.Key)
		err = verr
	}
	return o, err
}

type hashed struct {
	sum string
	err error
}

// hashRaw is the SHA-256 of a raw disk, or "" for one that is so much larger
// than its data that hashing holes would take longer than all else. The hash of
// the stored object says as much.
func hashRaw(ctx context.Context, d codec.Disk) hashed {
	data := int64(0)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil {
			return hashed{err: err}
		}
		if !e.Zero {
			data += e.Len
		}
	}
	if d.Size() > 4*max(data, 1<<30) {
		return hashed{}
	}
	h := sha256.New()
	r := io.NewSectionReader(plainReader{ctx, d}, 0, d.Size())
	if _, err := io.CopyBuffer(h, r, make([]byte, 1<<20)); err != nil {
		return hashed{err: err}
	}
	return hashed{sum: hex.EncodeToString(h.Sum(nil))}
}

// plainReader is a disk as an io.ReaderAt.
type plainReader struct {
	ctx context.Context
	codec.ReaderAt
}

func (r plainReader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReaderAt.ReadAt(r.ctx, p, off)
}

// sumInto writes the bytes of r from off to end to w.
func sumInto(ctx context.Context, w io.Writer, r io.ReaderAt, off, end int64) error {
	buf := make([]byte, min(1<<20, max(end-off, 0)))
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}
