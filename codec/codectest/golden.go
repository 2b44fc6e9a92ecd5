package codectest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"imagefs/codec"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.json")

const goldenPath = "testdata/golden.json"

// Sum is the SHA-256 of a file's size and bytes: all of them up to 32 MiB, else
// the first and last 4 MiB and 64 KiB at 64 places, so that a file of TiB has
// one too.
func Sum(f codec.Source) (string, error) {
	h := sha256.New()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(f.Size()))
	h.Write(b[:])
	buf := make([]byte, mib)
	part := func(off, n int64) error {
		for n > 0 {
			p := buf[:min(n, mib)]
			if m, err := f.ReadAt(context.Background(), p, off); m < len(p) {
				return err
			}
			h.Write(p)
			off, n = off+int64(len(p)), n-int64(len(p))
		}
		return nil
	}
	if f.Size() <= 32*mib {
		if err := part(0, f.Size()); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	if err := part(0, 4*mib); err != nil {
		return "", err
	}
	for i := range int64(64) {
		if err := part(f.Size()/64*i, 64*kib); err != nil {
			return "", err
		}
	}
	if err := part(f.Size()-4*mib, 4*mib); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// golden: the same disk gives the same bytes twice, and those of all releases
// before. A changed hash is a release note.
func (s *suite) golden(t *testing.T) {
	all := map[string]map[string]string{}
	if b, err := os.ReadFile(goldenPath); err == nil {
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatalf("%s: %v", goldenPath, err)
		}
	}
	mine := map[string]string{}
	for _, d := range append(Disks(), Example()) {
		if raceEnabled && d.Size() > 4*tib && !*update {
			mine[d.Name] = all[s.view.Name()][d.Name] // takes too long
			continue
		}
		f := s.layout(t, d)
		if f == nil {
			mine[d.Name] = "too large"
			continue
		}
		a, err := Sum(f)
		if err != nil {
			t.Fatalf("%s: %v", d.Name, err)
		}
		if b, err := Sum(s.layout(t, d)); err != nil || a != b {
			t.Errorf("%s: a second layout has the sum %s (%v), the first %s", d.Name, b, err, a)
		}
		mine[d.Name] = a
	}
	if *update {
		all[s.view.Name()] = mine
		b, err := json.MarshalIndent(all, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(goldenPath), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(goldenPath, append(b, '\n'), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := all[s.view.Name()]
	for name, sum := range mine {
		if want[name] != sum {
			t.Errorf("%s: the file's sum is %s, want %q; if it was meant to change, run go test -update and say so in the release notes", name, sum, want[name])
		}
	}
	for name := range want {
		if _, ok := mine[name]; !ok {
			t.Errorf("%s holds a sum for the unknown disk %s; run go test -update", goldenPath, name)
		}
	}
}
