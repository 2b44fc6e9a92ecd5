package zvhd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"imagefs/codec"
)

// reader reads records.
type reader struct {
	src  codec.Source
	recs []record
}

// worker is the memory that decoding a block takes. One goroutine has it at a
// time.
type worker struct {
	rec   []byte // a whole record
	out   []byte // a whole block, for parts of it
	in    bytes.Reader
	flate io.ReadCloser
}

var workers = sync.Pool{New: func() any { return new(worker) }}

// block is room for a block.
func (w *worker) block() []byte {
	if w.out == nil {
		w.out = make([]byte, blockSize)
	}
	return w.out
}

// payload reads record k into w, checks it, and returns its payload.
func (r *reader) payload(ctx context.Context, w *worker, k int) ([]byte, error) {
	want := r.recs[k]
	if int64(cap(w.rec)) < want.len() {
		w.rec = make([]byte, want.len())
	}
	b := w.rec[:want.len()]
	if err := codec.ReadFull(ctx, r.src, b, want.off, "record"); err != nil {
		return nil, err
	}
	got, n, err := parseRecord(b, want.off)
	if err != nil {
		return nil, err
	}
	if got != want {
		return nil, codec.Corruptf("record at %#x is of block %d and has %d bytes, want block %d and %d", want.off, got.block, got.len(), want.block, want.len())
	}
	if err := got.checkEnd(b[len(b)-len(recordEnd):]); err != nil {
		return nil, err
	}
	return b[recordHead : recordHead+n], nil
}

// damaged says that the payload of record k does not decode.
func (r *reader) damaged(k int, err error) error {
	if err == nil {
		return nil
	}
	return codec.Corruptf("payload of block %d, record at %#x: %v", r.recs[k].block, r.recs[k].off, err)
}

var (
	errMore  = errors.New("decodes to more than the 2097152 bytes of a block")
	errEnds  = errors.New("the zlib stream ends, which the format does not allow")
	errShort = errors.New("cut: it decodes to less than a block and does not end with a flush")
	errZlib  = errors.New("does not begin as a zlib stream")
)

// flush is how each flushed payload ends: an empty stored block.
const flush = "\x00\x00\xff\xff"

// zlibBody is p without the head of a zlib stream (RFC 1950, section 2.2).
func zlibBody(p []byte) ([]byte, error) {
	if len(p) < 2 || p[0]&15 != 8 || p[1]&0x20 != 0 || (int(p[0])<<8|int(p[1]))%31 != 0 {
		return nil, errZlib
	}
	return p[2:], nil
}

// inflate fills dst from raw deflate data, which may refer to the bytes of
// window before it, and with zeros where a flushed payload has no more. n is
// without these. With room for a whole block in dst, p must end where it does.
func (w *worker) inflate(dst, p, window []byte) (n int, err error) {
	w.in.Reset(p)
	if w.flate == nil {
		w.flate = flate.NewReaderDict(&w.in, window)
	} else if err := w.flate.(flate.Resetter).Reset(&w.in, window); err != nil {
		return 0, err
	}
	n, err = fill(w.flate, dst)
	if err == nil && len(dst) == blockSize {
		var more [1]byte
		if m, e := fill(w.flate, more[:]); m > 0 {
			err = errMore
		} else if err = e; err == io.ErrUnexpectedEOF {
			err = nil
		}
	}
	switch {
	case err == io.EOF:
		return n, errEnds
	case err == io.ErrUnexpectedEOF && strings.HasSuffix(string(p[max(len(p)-len(flush), 0):]), flush):
		clear(dst[n:])
		return n, nil
	case err == io.ErrUnexpectedEOF:
		return n, errShort
	}
	return n, err
}

// fill reads r until p is full. Unlike io.ReadFull it leaves the errors of r as
// they are.
func fill(r io.Reader, p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	if n == len(p) {
		err = nil
	}
	return n, err
}

// single decodes the blocks of a ZVHD2, each by itself.
type single struct {
	*reader
	method byte
}

func (s *single) decode(ctx context.Context, w *worker, k int, dst []byte) error {
	p, err := s.payload(ctx, w, k)
	if err != nil {
		return err
	}
	if s.method == methodZstd {
		_, err := unzstd(dst[:blockSize:blockSize], p)
		return s.damaged(k, err)
	}
	if p, err = zlibBody(p); err == nil {
		_, err = w.inflate(dst, p, nil)
	}
	return s.damaged(k, err)
}

// maxWindow is the largest zstd window read, what the reference decoder takes
// without being asked. It costs nothing: the window is the block.
const maxWindow = 128 << 20

// zstdDecoder is stateless here: DecodeAll may be called concurrently, by as
// many goroutines at a time as there are processors.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecodeAllCapLimit(true))
})

// unzstd fills dst, a whole block, from the frames that p is, and with zeros
// where they give less. n is without these.
func unzstd(dst, p []byte) (n int, err error) {
	d, err := zstdDecoder()
	if err != nil {
		return 0, err
	}
	b, err := d.DecodeAll(p, dst[:0])
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return 0, errMore
	}
	if err == nil {
		clear(dst[len(b):])
	}
	return len(b), err
}
