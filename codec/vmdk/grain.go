package vmdk

import (
	"bytes"
	"context"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"imagefs/codec"
)

const (
	recordHead = 12 // guest sector and length, before the data
	zlibAround = 6  // the head of a zlib stream and its checksum
)

// marker is the sector before a table, directory or footer.
type marker struct {
	sectors uint64 // that follow
	length  uint32 // 0, where a record has the length of its data
	kind    uint32
}

const (
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

func parseMarker(b []byte) marker {
	return marker{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])}
}

// put writes m into b, a sector of zeros.
func (m marker) put(b []byte) {
	le.PutUint64(b, m.sectors)
	le.PutUint32(b[8:], m.length)
	le.PutUint32(b[12:], m.kind)
}

// decoder reads compressed grains.
type decoder struct {
	src   codec.Source
	size  int64 // of the disk, bytes
	grain int64 // bytes
	pool  sync.Pool
}

// inflater is what one grain takes to decode.
type inflater struct {
	buf  []byte
	in   bytes.Reader
	zlib io.ReadCloser
}

// decode fills dst, a whole grain, from the record that e tells.
func (d *decoder) decode(ctx context.Context, e codec.Entry, dst []byte) error {
	_, err := d.measure(ctx, e, dst)
	return err
}

// measure is decode, and returns how many bytes the deflate stream inside the
// zlib stream has.
func (d *decoder) measure(ctx context.Context, e codec.Entry, dst []byte) (int64, error) {
	i, at := unpack(e)
	f, _ := d.pool.Get().(*inflater)
	if f == nil {
		f = &inflater{buf: make([]byte, sector, sector+d.grain)}
	}
	defer d.pool.Put(f)
	data, err := d.record(ctx, f, i, at)
	if err != nil {
		return 0, err
	}
	f.in.Reset(data)
	if f.zlib == nil {
		f.zlib, err = zlib.NewReader(&f.in)
	} else {
		err = f.zlib.(zlib.Resetter).Reset(&f.in, nil)
	}
	if err != nil {
		return 0, codec.Corruptf("grain %d at %#x: %v", i, at, err)
	}
	n, err := drain(f.zlib, dst)
	switch {
	case err != nil:
		return 0, codec.Corruptf("grain %d at %#x, after %d bytes: %v", i, at, n, err)
	case int64(n) > d.grain:
		return 0, codec.Corruptf("grain %d at %#x: inflates to more than its %d bytes", i, at, d.grain)
	case int64(n) < min(d.grain, d.size-i*d.grain): // the last one may end with the disk
		return 0, codec.Corruptf("grain %d at %#x: inflates to %d of its %d bytes", i, at, n, d.grain)
	}
	clear(dst[min(n, len(dst)):])
	return int64(len(data)-f.in.Len()) - zlibAround, nil
}

// drain reads r to its end, where a zlib stream has its checksum, into dst. It
// stops one byte behind dst.
func drain(r io.Reader, dst []byte) (n int, err error) {
	var more [1]byte
	for err == nil && n <= len(dst) {
		p := dst[n:]
		if len(p) == 0 {
			p = more[:]
		}
		var m int
		m, err = r.Read(p)
		n += m
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// record reads the data of grain i, whose record begins at at.
func (d *decoder) record(ctx context.Context, f *inflater, i, at int64) ([]byte, error) {
	head := f.buf[:min(sector, d.src.Size()-at)]
	if len(head) < recordHead {
		return nil, codec.Corruptf("grain %d at %#x: cut by the end of the file (%d bytes)", i, at, d.src.Size())
	}
	if err := codec.ReadFull(ctx, d.src, head, at, "grain"); err != nil {
		return nil, err
	}
	if got, want := le.Uint64(head), uint64(i*d.grain/sector); got != want {
		return nil, codec.Corruptf("grain %d at %#x: its record is of guest sector %#x, want %#x", i, at, got, want)
	}
	n := int64(le.Uint32(head[8:]))
	if n == 0 || n > 2*d.grain {
		return nil, codec.Corruptf("grain %d at %#x: data of %d bytes, want 1 to %d", i, at, n, 2*d.grain)
	}
	end := recordHead + n
	if end > d.src.Size()-at {
		return nil, codec.Corruptf("grain %d at %#x: data of %d bytes cut by the end of the file (%d bytes)", i, at, n, d.src.Size())
	}
	have := int64(len(head))
	if end > have {
		if int64(cap(f.buf)) < end {
			f.buf = append(make([]byte, 0, end), head...)
		}
		f.buf = f.buf[:max(end, sector)]
		if err := codec.ReadFull(ctx, d.src, f.buf[have:end], at+have, "grain"); err != nil {
			return nil, err
		}
	}
	return f.buf[recordHead:end], nil
}
