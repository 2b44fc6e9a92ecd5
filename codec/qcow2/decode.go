package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"imagefs/codec"
)

// decoder decodes compressed clusters. It is safe for concurrent use, and
// once warm it allocates nothing.
type decoder struct {
	src  codec.Source
	h    *header
	pool sync.Pool // *inout
}

// inout is the memory of one decoding.
type inout struct{ in, out []byte }

func newDecoder(src codec.Source, h *header) *decoder { return &decoder{src: src, h: h} }

// decode is [codec.Table]'s Decode.
func (d *decoder) decode(ctx context.Context, e codec.Entry, dst []byte) error {
	_, err := d.read(ctx, e, dst, func(out, src []byte) (int, error) {
		if d.h.zstd {
			return unzstd(dst, out, src)
		}
		return 0, inflate(dst, src)
	})
	return err
}

// measure is decode, and returns how many bytes of the file the cluster's data
// have, or 0: see [codec.Streamed].
func (d *decoder) measure(ctx context.Context, e codec.Entry, dst []byte) (n int64, err error) {
	return d.read(ctx, e, dst, func(out, src []byte) (int, error) {
		if d.h.zstd {
			return unzstd(dst, out, src)
		}
		return measure(dst, src)
	})
}

// read reads what may be the data of an entry and has them unpacked, which
// returns how many they are. out is what unzstd wants.
func (d *decoder) read(ctx context.Context, e codec.Entry, dst []byte, unpack func(out, src []byte) (int, error)) (int64, error) {
	off, n := d.h.compressedRange(uint64(e))
	n = min(n, d.src.Size()-off)
	m, _ := d.pool.Get().(*inout)
	if m == nil {
		m = new(inout)
		if d.h.zstd && len(dst) <= slackMax {
			m.out = make([]byte, len(dst)+zstdSlack)
		}
	}
	defer d.pool.Put(m)
	if int64(cap(m.in)) < n {
		m.in = make([]byte, codec.Up(n, 4096))
	}
	b := m.in[:n]
	if k, err := d.src.ReadAt(ctx, b, off); k < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, fmt.Errorf("read compressed cluster at %#x: %w", off, err)
	}
	used, err := unpack(m.out, b)
	if err != nil {
		return 0, codec.Corruptf("compressed cluster at %#x: %v", off, err)
	}
	return int64(used), nil
}

// maxWindow is the largest zstd window read, what the reference decoder takes
// without being asked. It costs nothing: the window is the cluster.
const maxWindow = 128 << 20

// zstdDecoder is stateless here: DecodeAll may be called concurrently, by as
// many goroutines at a time as there are processors.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecodeAllCapLimit(true))
})

// zstdSlack is the room behind its output with which the zstd decoder is a
// quarter faster, copying the cluster included. A cluster larger than slackMax
// is several blocks, of which only the last one lacks the room.
const (
	zstdSlack = 16
	slackMax  = 128 << 10
)

// unzstd fills dst from the zstd frames at the start of src. They must end
// where dst does; skippable frames count for nothing, and what follows is the
// next cluster's. It decodes into out, which is longer than dst, or into dst
// when out is nil, and returns how many bytes of src it took.
func unzstd(dst, out, src []byte) (used int, err error) {
	dec, err := zstdDecoder()
	if err != nil {
		return 0, err
	}
	if out == nil {
		out = dst[:len(dst):len(dst)]
	}
	for n := 0; n < len(dst); {
		frame, skip, err := zstdFrame(src[used:])
		if err != nil {
			return 0, err
		}
		used += len(frame)
		if skip {
			continue
		}
		b, err := dec.DecodeAll(frame, out[n:n])
		if err != nil {
			return 0, err
		}
		if n += len(b); n > len(dst) {
			return 0, zstd.ErrDecoderSizeExceeded
		}
	}
	copy(dst, out)
	return used, nil
}

// zstdFrame is the frame at the start of src, whose length is found by walking
// its block headers (RFC 8878, section 3.1.1), and whether it is skippable.
func zstdFrame(src []byte) (frame []byte, skip bool, err error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errShort
		}
		return nil, false, err
	}
	end := int64(h.HeaderSize)
	if h.Skippable {
		end += int64(h.SkippableSize)
	} else {
		for last := false; !last; {
			if int64(len(src))-end < 3 {
				return nil, false, errShort
			}
			b := int64(src[end]) | int64(src[end+1])<<8 | int64(src[end+2])<<16
			last = b&1 == 1
			if end += 3; b>>1&3 == 1 { // one byte, repeated
				end++
			} else {
				end += b >> 3
			}
		}
		if h.HasCheckSum {
			end += 4
		}
	}
	if end > int64(len(src)) {
		return nil, false, errShort
	}
	return src[:end], h.Skippable, nil
}
