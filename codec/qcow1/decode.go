package qcow1

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"
	"sync"

	"imagefs/codec"
)

// decoder decodes compressed clusters: at most 64 KiB each, of at most as many
// bytes.
type decoder struct {
	src  codec.Source
	h    *header
	pool sync.Pool // *inflater
}

type inflater struct {
	in  []byte
	src bytes.Reader
	z   io.ReadCloser
}

// decode is [codec.Table]'s Decode. What follows a whole cluster in its data is
// ignored, as QEMU does.
func (d *decoder) decode(ctx context.Context, e codec.Entry, dst []byte) error {
	off, n := d.h.unpack(uint64(e))
	m, _ := d.pool.Get().(*inflater)
	if m == nil {
		m = &inflater{in: make([]byte, d.h.cluster()), z: flate.NewReader(nil)}
	}
	defer d.pool.Put(m)
	b := m.in[:n]
	if err := codec.ReadFull(ctx, d.src, b, off, "compressed cluster"); err != nil {
		return err
	}
	m.src.Reset(b)
	if err := m.z.(flate.Resetter).Reset(&m.src, nil); err != nil {
		return fmt.Errorf("reset the decoder: %w", err)
	}
	if k, err := io.ReadFull(m.z, dst); err != nil {
		return codec.Corruptf("compressed cluster at %#x, %d bytes: %d of %d bytes, then %v", off, n, k, len(dst), err)
	}
	return nil
}
