package remote_test

import (
	"testing"

	"imagefs/remote"
)

func TestPartsLieOneAfterAnother(t *testing.T) {
	off := int64(0)
	for n := 1; n <= remote.MaxParts; n++ {
		if got := remote.PartOffset(n); got != off {
			t.Fatalf("part %d lies at %d, want %d", n, got, off)
		}
		off += remote.PartSize(n)
	}
	if got := remote.PartOffset(remote.MaxParts + 1); got != off || got != remote.MaxUpload {
		t.Errorf("parts end at %d and make up %d, want %d", got, int64(remote.MaxUpload), off)
	}
}

func TestPartSizesAreFixed(t *testing.T) {
	// Other versions may complete or count on what this one began.
	for n, want := range map[int]int64{
		-1: 0, 0: 0, 1: 16 << 20, 1000: 16 << 20, 1001: 64 << 20, 4000: 64 << 20, 4001: 512 << 20, 10_000: 512 << 20, 10_001: 0,
	} {
		if got := remote.PartSize(n); got != want {
			t.Errorf("part %d has %d bytes, want %d", n, got, want)
		}
	}
	for n, want := range map[int]int64{-1: 0, 0: 0, 1: 0, 2: 16 << 20, 1001: 16000 << 20, 1 << 40: remote.MaxUpload} {
		if got := remote.PartOffset(n); got != want {
			t.Errorf("part %d lies at %d, want %d", n, got, want)
		}
	}
}

func TestCheckParts(t *testing.T) {
	const full = 16 << 20
	for _, v := range []struct {
		name  string
		sizes map[int]int64
		total int64
		ok    bool
	}{
		{"none", nil, 0, true},
		{"one small", map[int]int64{1: 1}, 1, true},
		{"the last is small", map[int]int64{1: full, 2: 5}, full + 5, true},
		{"all are full", map[int]int64{1: full, 2: full}, 2 * full, true},
		{"the first is missing", map[int]int64{2: 5}, 0, false},
		{"one between is missing", map[int]int64{1: full, 3: 5}, 0, false},
		{"one between is small", map[int]int64{1: full - 1, 2: 5}, 0, false},
	} {
		total, err := remote.CheckParts(v.sizes)
		if total != v.total || (err == nil) != v.ok {
			t.Errorf("%s: got %d and error %v, want %d and success %v", v.name, total, err, v.total, v.ok)
		}
	}
}
