package qcow2

import (
	"context"
	"sync"

	"imagefs/codec"
)

// Reading L2 tables: one large image has thousands of them, and a round trip
// to the store costs more than the bytes between two tables. Tables that lie
// near each other are read in one call, and calls overlap.
const (
	pieceLen = 1 << 20   // bytes of one call, unless a table is larger
	gapLen   = 128 << 10 // bytes that are read to save a call
	inFlight = 8         // calls at a time
)

// piece is one call: a range of the file and the tables in it.
type piece struct {
	off, n int64
	refs   []l2Ref
	buf    []byte
	err    error
	done   chan struct{}
}

// readL2 reads the tables, which are sorted by offset, and hands each to parse
// in that order: the part of it that the disk uses. It returns after its last
// read has.
func readL2(ctx context.Context, src codec.Source, h *header, refs []l2Ref, parse func(l2Ref, []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	var queue []*piece
	var free [][]byte
	for len(refs) > 0 || len(queue) > 0 {
		for len(refs) > 0 && len(queue) < inFlight {
			var p *piece
			p, refs = nextPiece(h, refs)
			if k := len(free) - 1; k >= 0 && int64(cap(free[k])) >= p.n {
				p.buf, free = free[k][:p.n], free[:k]
			} else {
				p.buf = make([]byte, p.n)
			}
			queue = append(queue, p)
			wg.Go(func() {
				p.err = codec.ReadFull(ctx, src, p.buf, p.off, "l2 tables")
				close(p.done)
			})
		}
		p := queue[0]
		queue = queue[1:]
		<-p.done
		if p.err != nil {
			return p.err
		}
		for _, r := range p.refs {
			at := r.off - p.off
			if err := parse(r, p.buf[at:at+h.l2Used(r.index)]); err != nil {
				return err
			}
		}
		free = append(free, p.buf)
	}
	return nil
}

// l2Used is how many bytes of L2 table i belong to the disk.
func (h *header) l2Used(i int64) int64 {
	n := codec.Ceil(h.size, h.cluster()) - i*h.perL2()
	return min(n, h.perL2()) * h.l2Entry()
}

// nextPiece takes the tables of the next call off refs.
func nextPiece(h *header, refs []l2Ref) (*piece, []l2Ref) {
	p := &piece{off: refs[0].off, done: make(chan struct{})}
	k := 0
	for ; k < len(refs); k++ {
		r := refs[k]
		n := r.off - p.off + h.l2Used(r.index)
		if k > 0 && (n > pieceLen || r.off-(p.off+p.n) > gapLen) {
			break
		}
		p.n = n
	}
	p.refs = refs[:k]
	return p, refs[k:]
}
