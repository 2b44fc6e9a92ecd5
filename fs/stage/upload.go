package stage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"imagefs/codec"
	"imagefs/remote"
)

// abortTimeout bounds the tidying after a failure.
const abortTimeout = 10 * time.Second

// upload stores an object of disk n and returns it and the SHA-256 of what was
// sent. It goes on where the job's stream ends, if there is one that holds.
func (c *Checked) upload(ctx context.Context, n int, format string, src *local) (o remote.Object, sum string, err error) {
	im, s := c.im, c.sent
	if src.size > remote.MaxUpload {
		return o, "", fmt.Errorf("%d bytes: %w: an object of more than %d", src.size, codec.ErrTooLarge, int64(remote.MaxUpload))
	}
	if err := s.settle(); s == nil || s.file != src.f || src.off != 0 || err != nil {
		s.abort()
		key := newKey(c.Image, n, format)
		if c.Starting != nil {
			if err := c.Starting(key); err != nil {
				return o, "", err
			}
		}
		if s, err = im.begin(ctx, src.f, key); err != nil {
			return o, "", err
		}
		s.base = src.off
	}
	s.mu.Lock()
	s.progress, s.total = c.Progress, src.size
	if before := c.stored; c.Package != "" && c.Progress != nil {
		s.progress = func(sent, _ int64) { c.Progress(before+sent, c.total) }
	}
	s.mu.Unlock()
	o, sum, err = s.finish(ctx, src.size)
	c.stored += src.size
	if err != nil {
		s.abort()
		if s == c.sent && !errors.Is(err, remote.ErrUnavailable) {
			c.sent = nil // what was sent ahead is of no use: all of it anew
			return c.upload(ctx, n, format, src)
		}
		return o, "", fmt.Errorf("upload %q: %w", s.key, err)
	}
	return o, sum, nil
}

// stream is an upload of a file, of the whole of it or behind a writer. Parts
// are hashed in order and sent some at a time; what was handed on must not
// change any more. A nil stream has sent nothing.
type stream struct {
	im   *Importer
	file *os.File
	base int64 // where its bytes begin in the file; what follows counts from there
	key  string
	up   remote.Upload
	hash hash.Hash

	sent atomic.Int64 // bytes the store has taken

	ctx    context.Context // of the parts
	cancel context.CancelCauseFunc
	parts  sync.WaitGroup

	mu      sync.Mutex
	written int64 // guarded by mu; what lies below and behind handed is complete
	handed  int64 // guarded by mu; what lies below was handed on
	spoiled error // guarded by mu; why it is of no use
	closed  bool  // guarded by mu; no more is handed on behind the writer
	ended   bool  // guarded by mu; completed or aborted
	part    int   // guarded by mu; the last that was handed on

	progress func(sent, total int64) // guarded by mu
	total    int64                   // guarded by mu

	wake   chan struct{}
	behind sync.WaitGroup // the goroutine behind a writer, if there is one
}

var errSpoiled = errors.New("bytes were written again after they had been sent")

// begin starts an upload of f under key. The parts outlive ctx.
func (im *Importer) begin(ctx context.Context, f *os.File, key string) (*stream, error) {
	up, err := im.up.Upload(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("upload %q: %w", key, err)
	}
	s := &stream{im: im, file: f, key: key, up: up, hash: sha256.New(), wake: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return s, nil
}

// part is one part that is handed on.
type part struct {
	number   int
	off, end int64
}

// next hands the next part on: a full one of what was written behind a writer,
// or with size known the rest up to it.
func (s *stream) next(size int64) (p part, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p = part{s.part + 1, s.handed, s.handed + remote.PartSize(s.part+1)}
	switch {
	case s.spoiled != nil:
		return p, false
	case size >= 0:
		p.end = min(p.end, size)
		ok = p.off < size
	default:
		ok = !s.closed && p.end <= s.written
	}
	if ok {
		s.part, s.handed = p.number, p.end
	}
	return p, ok
}

// follow sends parts behind a writer until settle or abort.
func (s *stream) follow() {
	s.behind.Go(func() {
		for {
			select {
			case <-s.wake:
			case <-s.ctx.Done():
				return
			}
			for {
				p, ok := s.next(-1)
				if !ok {
					break
				}
				if err := s.hand(p); err != nil {
					s.spoil(err)
				}
			}
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			if closed {
				return
			}
		}
	})
}

func (s *stream) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// hand hashes one part and sends it in the background, as soon as one of the
// importer's slots is free.
func (s *stream) hand(p part) error {
	select {
	case s.im.slots <- struct{}{}:
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	s.parts.Go(func() {
		defer func() { <-s.im.slots }()
		if err := s.up.Part(s.ctx, p.number, io.NewSectionReader(s.file, s.base+p.off, p.end-p.off)); err != nil {
			s.spoil(err)
			return
		}
		n := s.sent.Add(p.end - p.off)
		s.mu.Lock()
		progress, total := s.progress, s.total
		s.mu.Unlock()
		if progress != nil {
			progress(n, total)
		}
	})
	return sumInto(s.ctx, s.hash, s.file, s.base+p.off, s.base+p.end)
}

// spoil gives the stream up: what is under way ends.
func (s *stream) spoil(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spoiled == nil {
		s.spoiled = err
		s.cancel(err)
	}
}

// touch tells of bytes from off on that change, before they do and after:
// sent already, they spoil the stream.
func (s *stream) touch(off int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	bad := off < s.handed
	s.mu.Unlock()
	if bad {
		s.spoil(errSpoiled)
	}
}

// advance tells that bytes were written up to end.
func (s *stream) advance(end int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	if end > s.written {
		s.written = end
	}
	full := s.written-s.handed >= remote.PartSize(s.part+1)
	s.mu.Unlock()
	if full {
		s.kick()
	}
}

// settle ends the sending behind a writer and reports why the stream is of no
// use, if it is not.
func (s *stream) settle() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.kick()
	s.behind.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spoiled
}

// finish sends the rest up to size and completes the object.
func (s *stream) finish(ctx context.Context, size int64) (o remote.Object, sum string, err error) {
	stop := context.AfterFunc(ctx, func() { s.spoil(context.Cause(ctx)) })
	defer stop()
	for err == nil {
		p, ok := s.next(size)
		if !ok {
			break
		}
		err = s.hand(p)
	}
	s.parts.Wait()
	s.mu.Lock()
	if s.spoiled != nil {
		err = s.spoiled
	} else if err == nil && s.handed != size {
		err = errSpoiled // it was cut after it had been sent
	}
	s.mu.Unlock()
	if err != nil {
		return o, "", err
	}
	if o, err = s.up.Complete(ctx); err != nil {
		return o, "", err
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	return o, hex.EncodeToString(s.hash.Sum(nil)), nil
}

// abort drops what was sent, as far as the store can be reached. After the
// end, and again, it does nothing.
func (s *stream) abort() {
	if s == nil {
		return
	}
	s.spoil(errAborted)
	_ = s.settle()
	s.parts.Wait()
	s.mu.Lock()
	ended := s.ended
	s.ended = true
	s.mu.Unlock()
	if ended {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), abortTimeout)
	defer cancel()
	_ = s.up.Abort(ctx) // recovery and the collector look again
}

var errAborted = errors.New("upload given up")
