package codec

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// windowMax is how far deflate refers back.
const windowMax = 32 << 10

// windowData reads what is kept of a window.
func (x *Index) windowData(ctx context.Context, v window) ([]byte, error) {
	b := make([]byte, v.n)
	if n, err := x.data.ReadAt(ctx, b, v.off); n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read a window of an index at %#x: %w", v.off, err)
	}
	if checksum(b) != v.crc {
		return nil, Corruptf("index: the window at %#x has another checksum", v.off)
	}
	return b, nil
}

// Window reads the window at restart point k, nil where none is needed.
func (x *Index) Window(ctx context.Context, k int64) ([]byte, error) {
	if k < 0 || k >= int64(len(x.windows)) {
		return nil, Corruptf("index: window %d of %d", k, len(x.windows))
	}
	v := x.windows[k]
	if v.n == 0 {
		return nil, nil
	}
	b, err := x.windowData(ctx, v)
	if err != nil {
		return nil, err
	}
	w, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), windowMax+1))
	if err != nil || len(w) == 0 || len(w) > windowMax {
		return nil, Corruptf("index: window %d at %#x is no window: %d bytes, %v", k, v.off, len(w), err)
	}
	return w, nil
}

// windowPacker compresses windows.
type windowPacker struct {
	buf bytes.Buffer
	w   *flate.Writer
}

// pack returns w compressed, nothing for nothing. It holds until the next call.
func (p *windowPacker) pack(w []byte) ([]byte, error) {
	p.buf.Reset()
	if len(w) == 0 {
		return nil, nil
	}
	if len(w) > windowMax {
		return nil, fmt.Errorf("a window of %d bytes", len(w))
	}
	if p.w == nil {
		p.w, _ = flate.NewWriter(nil, flate.DefaultCompression) // the level is one
	}
	p.w.Reset(&p.buf)
	_, err := p.w.Write(w)
	if err = firstOf(err, p.w.Close()); err != nil {
		return nil, fmt.Errorf("compress a window: %w", err)
	}
	return p.buf.Bytes(), nil
}

// pileMax is how many bytes of windows are held in memory.
const pileMax = 16 << 20

// pile is bytes that pile up: in memory, and when they are many in a file
// without a name.
type pile struct {
	mem  []byte
	file *os.File
	size int64
}

func (p *pile) add(b []byte) (err error) {
	if p.file == nil && p.size+int64(len(b)) > pileMax {
		if p.file, err = os.CreateTemp("", "index-*"); err != nil {
			return fmt.Errorf("a file for the windows of an index: %w", err)
		}
		_ = os.Remove(p.file.Name())
		_, err = p.file.Write(p.mem)
		p.mem = nil
	}
	if p.file == nil {
		p.mem = append(p.mem, b...)
	} else if err == nil {
		_, err = p.file.Write(b)
	}
	p.size += int64(len(b))
	return err
}

func (p *pile) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	if p.file != nil {
		return p.file.ReadAt(b, off)
	}
	if off < 0 || off > int64(len(p.mem)) {
		return 0, io.EOF
	}
	return copy(b, p.mem[off:]), nil
}

func (p *pile) close() error {
	if p.file == nil {
		return nil
	}
	err := p.file.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
