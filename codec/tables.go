package codec

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// Reading tables of the second level: one large image has thousands of them, and
// a round trip to the store costs more than the bytes between two tables. Tables
// that lie near each other are read in one call, and calls overlap.
const (
	tableGap   = 128 << 10 // bytes that are read to save a call
	tableReads = 8         // calls at a time, of at most entryPiece bytes each
)

// TableAt is a table of the second level, or a part of one: its place in the
// file, the number of its first entry among those of all tables, and how many
// entries count.
type TableAt struct {
	Off, First, N int64
}

// ReadTables reads tables of entries of size bytes each and calls each for every
// table in the order of the file, once for a small one and for every 1 MiB of a
// larger one, with the part and its bytes. They are only valid during the call,
// and an error ends the reading. No read goes on after ReadTables has returned.
//
// The caller has claimed the tables, so that they lie inside the file and are
// not more than it holds.
func ReadTables(ctx context.Context, src Source, tables []TableAt, size int, what string, each func(t TableAt, b []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	tables = cutTables(tables, int64(size))
	var queue []*tableRead
	var free [][]byte
	for len(tables) > 0 || len(queue) > 0 {
		for len(tables) > 0 && len(queue) < tableReads {
			var r *tableRead
			r, tables = nextRead(tables, int64(size))
			if k := len(free) - 1; k >= 0 && int64(cap(free[k])) >= r.n {
				r.buf, free = free[k][:r.n], free[:k]
			} else {
				r.buf = make([]byte, r.n)
			}
			queue = append(queue, r)
			wg.Go(func() {
				r.err = ReadFull(ctx, src, r.buf, r.off, what)
				close(r.done)
			})
		}
		r := queue[0]
		queue = queue[1:]
		<-r.done
		if r.err != nil {
			return r.err
		}
		for _, t := range r.tables {
			at, n := t.Off-r.off, t.N*int64(size)
			if err := each(t, r.buf[at:at+n:at+n]); err != nil {
				return err
			}
		}
		free = append(free, r.buf)
	}
	return nil
}

// cutTables are the tables in the order of the file, in parts that one call
// reads.
func cutTables(tables []TableAt, size int64) []TableAt {
	most := entryPiece / size
	var parts []TableAt
	for _, t := range tables {
		for ; t.N > 0; t.Off, t.First, t.N = t.Off+most*size, t.First+most, t.N-most {
			parts = append(parts, TableAt{t.Off, t.First, min(t.N, most)})
		}
	}
	slices.SortStableFunc(parts, func(a, b TableAt) int { return cmp.Compare(a.Off, b.Off) })
	return parts
}

// tableRead is one call: a range of the file and the tables in it.
type tableRead struct {
	off, n int64
	tables []TableAt
	buf    []byte
	err    error
	done   chan struct{}
}

// nextRead takes the tables of the next call off a list.
func nextRead(tables []TableAt, size int64) (*tableRead, []TableAt) {
	r := &tableRead{off: tables[0].Off, done: make(chan struct{})}
	k := 0
	for ; k < len(tables); k++ {
		t := tables[k]
		n := max(r.n, t.Off-r.off+t.N*size) // one may lie inside another
		if k > 0 && (n > entryPiece || t.Off-(r.off+r.n) > tableGap) {
			break
		}
		r.n = n
	}
	r.tables = tables[:k]
	return r, tables[k:]
}
