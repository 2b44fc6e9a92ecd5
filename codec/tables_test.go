package codec_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// TestReadTables: every entry comes once, with its number, in few reads.
func TestReadTables(t *testing.T) {
	ctx := context.Background()
	b := make([]byte, 3<<20)
	for i := 0; i < len(b); i += 4 {
		binary.LittleEndian.PutUint32(b[i:], uint32(i))
	}
	for _, c := range []struct {
		name   string
		tables []codec.TableAt
		reads  int64
	}{
		{"none", nil, 0},
		{"one", []codec.TableAt{{Off: 512, First: 0, N: 10}}, 1},
		{"one larger than a piece", []codec.TableAt{{Off: 4, First: 7, N: 600 << 10}}, 3},
		{"neighbours in another order", []codec.TableAt{{Off: 8192, First: 0, N: 1024}, {Off: 4096, First: 1024, N: 1024}, {Off: 12288, First: 2048, N: 3}}, 1},
		{"a gap", []codec.TableAt{{Off: 0, First: 5, N: 1}, {Off: 128<<10 + 8, First: 6, N: 1}}, 2},
		{"no gap", []codec.TableAt{{Off: 0, First: 5, N: 1}, {Off: 128<<10 + 4, First: 6, N: 1}}, 1},
		{"more than a piece", []codec.TableAt{{Off: 0, First: 0, N: 200 << 10}, {Off: 800 << 10, First: 200 << 10, N: 200 << 10}}, 2},
		{"one inside another", []codec.TableAt{{Off: 0, First: 0, N: 100}, {Off: 8, First: 100, N: 10}, {Off: 400, First: 110, N: 10}}, 1},
		{"of nothing", []codec.TableAt{{Off: 0, First: 0, N: 0}, {Off: 8, First: 0, N: 1}}, 1},
	} {
		want := map[int64]int64{}
		for _, x := range c.tables {
			for i := range x.N {
				want[x.First+i] = x.Off + 4*i
			}
		}
		src := codectest.Bounded(codectest.Bytes(b), 1000, 1<<40)
		err := codec.ReadTables(ctx, src, c.tables, 4, "tables", func(at codec.TableAt, b []byte) error {
			if int64(len(b)) != 4*at.N || len(b) > 1<<20 {
				t.Fatalf("%s: %d bytes of %+v", c.name, len(b), at)
			}
			for i := at.First; len(b) > 0; i, b = i+1, b[4:] {
				if got := int64(binary.LittleEndian.Uint32(b)); got != want[i] {
					t.Fatalf("%s: entry %d is that at %d, want %d", c.name, i, got, want[i])
				}
				delete(want, i)
			}
			return nil
		})
		if reads, _ := src.Used(); err != nil || len(want) != 0 || reads != c.reads {
			t.Errorf("%s: %d entries are missing, %d reads, want %d; %v", c.name, len(want), reads, c.reads, err)
		}
	}
	two := []codec.TableAt{{Off: 0, N: 1}, {Off: 8, N: 1}}
	if err := codec.ReadTables(ctx, codectest.Bytes(b), two, 4, "tables", func(codec.TableAt, []byte) error { return codectest.ErrBoom }); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("error of each: %v", err)
	}
	if err := codec.ReadTables(ctx, codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, 0), two, 4, "tables", nil); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("error of the store: %v", err)
	}
	if err := codec.ReadTables(ctx, codectest.Bytes(b[:10]), two, 4, "tables", nil); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("past the end: %v", err)
	}
}

func TestReadOnlySaysSo(t *testing.T) {
	r := codec.ReadOnly("qed")
	f, err := r.Layout(context.Background(), codectest.Empty(512), codectest.TestFacts())
	if f != nil || !errors.Is(err, codec.ErrNotPossible) || err.Error() != "not possible for this disk: qed is only read here" || r.Name() != "qed" {
		t.Errorf("%v, %v", f, err)
	}
}
