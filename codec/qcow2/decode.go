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
	src    codec.Source
	h      *header
	inputs sync.Pool // *[]byte
}

func newDecoder(src codec.Source, h *header) *decoder { return &decoder{src: src, h: h} }

// decode is [codec.Table]'s Decode.
func (d *decoder) decode(ctx context.Context, e codec.Entry, dst []byte) error {
	off, n := d.h.compressedRange(uint64(e))
	n = min(n, d.src.Size()-off)
	in, _ := d.inputs.Get().(*[]byte)
	if in == nil {
		in = new([]byte)
	}
	defer d.inputs.Put(in)
	if int64(cap(*in)) < n {
		*in = make([]byte, codec.Up(n, 4096))
	}
	b := (*in)[:n]
	if m, err := d.src.ReadAt(ctx, b, off); m < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read compressed cluster at %#x: %w", off, err)
	}
	var err error
	if d.h.zstd {
		err = unzstd(dst, b)
	} else {
		err = inflate(dst, b)
	}
	if err != nil {
		return codec.Corruptf("compressed cluster at %#x: %v", off, err)
	}
	return nil
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

// unzstd fills dst from the zstd frames at the start of src. They must end
// where dst does; skippable frames count for nothing, and what follows is the
// next cluster's.
func unzstd(dst, src []byte) error {
	dec, err := zstdDecoder()
	if err != nil {
		return err
	}
	for n := 0; n < len(dst); {
		frame, skip, err := zstdFrame(src)
		if err != nil {
			return err
		}
		src = src[len(frame):]
		if skip {
			continue
		}
		out, err := dec.DecodeAll(frame, dst[n:n:len(dst)])
		if err != nil {
			return err
		}
		n += len(out)
	}
	return nil
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
