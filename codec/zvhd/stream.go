package zvhd

import (
	"context"
	"errors"
	"slices"

	"github.com/klauspost/compress/flate"

	"imagefs/codec"
)

const (
	windowLen = 32 << 10 // how far deflate refers back

	// A stream keeps so many windows along the file, 8 MiB of memory, so that
	// a block is at most a 256th of the records behind one once a reader has
	// been there. A file of up to 512 MiB of data has one for every block.
	keptWindows = 256
	// And those behind the blocks decoded last, for readers that go on there.
	hotWindows = 4
)

// stream decodes the blocks of a ZVHD, one deflate stream over all payloads.
//
// A block that does not refer to the ones before it, such as all of our own, is
// decoded by itself, and concurrently with others. For one that does, the bytes
// before it are needed: records are decoded from the nearest window known, in
// one pass at a time, which leaves windows for those who come later. So reading
// from end to end decodes everything once, but for blocks by themselves that one
// which is not follows, and a read somewhere in a file that was never read
// decodes what is before it: back to a restart point where an index has its
// window.
type stream struct {
	*reader
	every int // records between two windows kept

	// indexed reads the window at a restart point; nil without an index. It
	// is set before the first read.
	indexed func(ctx context.Context, k int64) ([]byte, error)

	turn chan struct{} // holds a token while somebody decodes with a window

	// Guarded by turn.
	kept [][]byte // the window before record i*every, nil if not known
	hot  [hotWindows]place
	next int    // of hot, to be replaced
	w    worker // for records on the way; its block is that of record done
	done int    // -1 for none
}

// place is a place in the stream: before record k, behind the bytes of window,
// which never change.
type place struct {
	k      int
	window []byte
}

// newStream is the decoder of r, whose records are set before its first use.
func newStream(r *reader) *stream {
	return &stream{reader: r, turn: make(chan struct{}, 1), done: -1}
}

func (s *stream) decode(ctx context.Context, w *worker, k int, dst []byte) error {
	p, err := s.body(ctx, w, k)
	if err != nil {
		return err
	}
	_, err = w.inflate(dst, p, nil)
	var corrupt flate.CorruptInputError
	if k == 0 || !errors.As(err, &corrupt) {
		return s.damaged(k, err)
	}
	// Damaged, or it refers to what is before it.
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	if s.done == k {
		copy(dst, s.w.out)
		return nil
	}
	window, err := s.window(ctx, k)
	if err != nil {
		return err
	}
	n, err := w.inflate(dst, p, window)
	if err == nil && len(dst) == blockSize {
		s.keep(k+1, slide(window, dst[:n]))
	}
	return s.damaged(k, err)
}

// body reads the deflate data of record k.
func (s *stream) body(ctx context.Context, w *worker, k int) ([]byte, error) {
	p, err := s.payload(ctx, w, k)
	if err == nil && k == 0 {
		p, err = zlibBody(p)
		err = s.damaged(k, err)
	}
	return p, err
}

// window is the one before record k. Called with the turn.
func (s *stream) window(ctx context.Context, k int) ([]byte, error) {
	at := s.nearest(k)
	at, err := s.restart(ctx, k, at)
	if err != nil {
		return nil, err
	}
	if at.k < k-1 && (s.indexed == nil || at.k < k-restartRecords) { // the block before may be one by itself
		p, err := s.body(ctx, &s.w, k-1)
		if err != nil {
			return nil, err
		}
		s.done = -1
		if n, err := s.w.inflate(s.w.block(), p, nil); err == nil && n >= windowLen {
			s.done, at = k-1, place{k, slide(nil, s.w.out[:n])}
			s.keep(k, at.window)
		}
	}
	for ; at.k < k; at.k++ {
		s.done = -1
		p, err := s.body(ctx, &s.w, at.k)
		if err != nil {
			return nil, err
		}
		n, err := s.w.inflate(s.w.block(), p, at.window)
		if err != nil {
			return nil, s.damaged(at.k, err)
		}
		s.done = at.k
		at.window = slide(at.window, s.w.out[:n])
		s.keep(at.k+1, at.window)
	}
	return at.window, nil
}

// restart is the restart point before record k, if an index has one that is
// nearer than at.
func (s *stream) restart(ctx context.Context, k int, at place) (place, error) {
	r := k / restartRecords
	if s.indexed == nil || r*restartRecords <= at.k {
		return at, nil
	}
	w, err := s.indexed(ctx, int64(r-1))
	if errors.Is(err, codec.ErrCorrupt) {
		return at, nil // the index is damaged, which costs time alone
	}
	if err != nil {
		return at, err
	}
	s.keep(r*restartRecords, w)
	return place{r * restartRecords, w}, nil
}

// nearest is the last place known at or before record k.
func (s *stream) nearest(k int) (at place) {
	for i := k / max(s.every, 1); i > 0 && i < len(s.kept); i-- {
		if s.kept[i] != nil {
			at = place{i * s.every, s.kept[i]}
			break
		}
	}
	for _, h := range s.hot {
		if h.k <= k && h.k > at.k {
			at = h
		}
	}
	return at
}

// keep remembers the window before record k.
func (s *stream) keep(k int, window []byte) {
	if s.kept == nil {
		s.every = max((len(s.recs)+keptWindows-1)/keptWindows, 1)
		s.kept = make([][]byte, len(s.recs)/s.every+1)
	}
	if k%s.every == 0 {
		s.kept[k/s.every] = window
	}
	if !slices.ContainsFunc(s.hot[:], func(h place) bool { return h.k == k }) {
		s.hot[s.next] = place{k, window}
		s.next = (s.next + 1) % hotWindows
	}
}

// slide is the last windowLen bytes of window and then b, in new memory.
func slide(window, b []byte) []byte {
	if n := windowLen - len(b); n > 0 {
		return slices.Concat(window[max(len(window)-n, 0):], b)
	}
	return slices.Clone(b[len(b)-windowLen:])
}
