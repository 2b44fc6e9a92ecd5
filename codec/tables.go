package codec

import (
	"cmp"
	"context"
	"slices"
)

// tableGap is how many bytes are read to save a call.
const tableGap = 64 << 10

// TableAt is one of the tables of the second level: its place in the file, the
// number of its first entry among those of all tables, and how many count.
type TableAt struct {
	Off, First, N int64
}

// ReadTables reads tables of entries of size bytes each, in the order of the
// file, and calls each with every entry. Tables near each other are read in one
// call, of at most 1 MiB unless one is larger. The bytes are only valid during
// the call. The caller has claimed the tables, so that they lie inside the file
// and are not more than it holds; they are sorted in place.
func ReadTables(ctx context.Context, src Source, tables []TableAt, size int, what string, each func(i int64, b []byte) error) error {
	slices.SortFunc(tables, func(a, b TableAt) int { return cmp.Compare(a.Off, b.Off) })
	end := func(t TableAt) int64 { return t.Off + t.N*int64(size) }
	for len(tables) > 0 {
		k, from, to := 1, tables[0].Off, end(tables[0])
		for k < len(tables) && tables[k].Off-to <= tableGap && max(to, end(tables[k]))-from <= entryPiece {
			to = max(to, end(tables[k]))
			k++
		}
		if k == 1 {
			t := tables[0]
			if err := ReadEntries(ctx, src, t.Off, t.N, size, what, func(i int64, b []byte) error { return each(t.First+i, b) }); err != nil {
				return err
			}
			tables = tables[1:]
			continue
		}
		buf := make([]byte, to-from)
		if err := ReadFull(ctx, src, buf, from, what); err != nil {
			return err
		}
		for _, t := range tables[:k] {
			p := buf[t.Off-from:]
			for i := range t.N {
				if err := each(t.First+i, p[:size:size]); err != nil {
					return err
				}
				p = p[size:]
			}
		}
		tables = tables[k:]
	}
	return nil
}
