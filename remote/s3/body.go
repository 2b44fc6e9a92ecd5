package s3

import (
	"bytes"
	"fmt"
	"hash"
	"io"
	"sync"

	"imagefs/remote"
)

// body is what a request sends: a source that can be read again from its
// start, or once.
type body struct {
	r     io.Reader
	again io.Seeker // nil if r can be read only once
	from  int64     // where r starts, for again
	size  int64
	used  bool
}

// newBody makes a body of the next size bytes of r. What cannot seek is read
// into memory, up to maxSingle.
func newBody(r io.Reader, size int64) (*body, error) {
	if s, ok := r.(io.Seeker); ok {
		if from, err := s.Seek(0, io.SeekCurrent); err == nil {
			return &body{r: r, again: s, from: from, size: size}, nil
		}
	}
	if size > maxSingle {
		return &body{r: r, size: size}, nil
	}
	b, err := readPart(r, size)
	if err != nil {
		return nil, err
	}
	br := bytes.NewReader(b)
	return &body{r: br, again: br, size: size}, nil
}

// readPart reads size bytes of r into memory.
func readPart(r io.Reader, size int64) ([]byte, error) {
	b := make([]byte, size)
	n, err := io.ReadFull(r, b)
	if err == io.EOF && size > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("%d of %d bytes: %w", n, size, err)
	}
	return b, nil
}

// start returns a reader of the body for one attempt.
func (b *body) start(t *try, stats *counters) (*sending, error) {
	if b.used && b.again == nil {
		return nil, final{fmt.Errorf("%w: the source cannot be read again", remote.ErrUnavailable)}
	}
	if b.used {
		if _, err := b.again.Seek(b.from, io.SeekStart); err != nil {
			return nil, final{err}
		}
	}
	b.used = true
	return &sending{r: b.r, left: b.size, t: t, stats: stats}, nil
}

const bufferSize = 256 << 10

// buffers are what bodies are read through.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// sum reads the body and adds its bytes to h.
func (b *body) sum(t *try, h hash.Hash) error {
	rd, err := b.start(t, new(counters))
	if err != nil {
		return err
	}
	defer rd.stop()
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	if _, err := io.CopyBuffer(h, rd, buf[:]); err != nil {
		return final{err}
	}
	return nil
}

// sending is the body of one attempt. It keeps the attempt alive while the
// connection takes bytes, and remembers what was wrong with the source.
type sending struct {
	r     io.Reader
	t     *try
	stats *counters
	hash  hash.Hash // of what was read, if not nil; set before the first read

	mu     sync.Mutex // guards the fields below: net/http reads in a goroutine of its own
	left   int64
	sent   int64 // since the last progress
	failed error
	ended  bool
}

// Read reads from the source.
func (b *sending) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended:
		return 0, io.ErrClosedPipe
	case b.left == 0:
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	b.moved(n)
	switch {
	case b.left == 0:
		err = nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	b.failed = err
	return n, err
}

// moved notes that n bytes went from the source to the connection. The caller
// holds b.mu.
func (b *sending) moved(n int) {
	b.left -= int64(n)
	b.sent += int64(n)
	b.stats.uploaded.Add(uint64(n))
	switch {
	case b.left == 0:
		b.t.progressed()
		b.t.patient() // the server stores it now
	case b.sent >= progress:
		b.sent = 0
		b.t.progressed()
	default:
		b.t.alive()
	}
}

// Close implements [io.Closer]: net/http closes bodies.
func (b *sending) Close() error { return nil }

// broken returns the error of the source, or nil.
func (b *sending) broken() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed == nil {
		return nil
	}
	return final{b.failed}
}

// stop ends the attempt. net/http may go on reading after the request failed,
// which must not take bytes from the next attempt.
func (b *sending) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}
