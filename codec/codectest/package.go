package codectest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
)

// PackDisks lays disks out as a package has them inside.
func PackDisks(t testing.TB, p codec.Package, m codec.Machine, disks ...codec.Disk) (list []codec.PackDisk) {
	t.Helper()
	for n, d := range disks {
		f, err := p.View().Layout(t.Context(), d, codec.Facts{ID: m.ID, Number: n, Name: p.DiskName(m.Name, n), Created: m.Created})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, codec.PackDisk{Number: n, Size: d.Size(), Data: 4096, File: f})
	}
	return list
}

// Pack lays disks out as a package.
func Pack(t testing.TB, p codec.Package, m codec.Machine, disks ...codec.Disk) *codec.File {
	t.Helper()
	f, err := p.Layout(m, PackDisks(t, p, m, disks...))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Member is a file in an archive: a type without a name, whose literals need no
// names of fields either.
type Member = struct {
	Name string
	Data []byte
}

// Archive is an archive as the standard library writes it.
func Archive(t testing.TB, f tar.Format, members ...Member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.Name, Size: int64(len(m.Data)), Mode: 0o644, Format: f, ModTime: time.Unix(1600000000, 0)}
		if f == tar.FormatPAX {
			h.PAXRecords = map[string]string{"comment": "x"}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// OpenHostilePackage opens bytes of any origin as a package. The error is nil
// for a clean refusal, and for a machine within its bounds with parts that lie
// inside the file, apart from one another. Memory and reads are bounded.
func OpenHostilePackage(p codec.Package, b []byte) ([]codec.Part, error) {
	ctx := context.Background()
	src := Bounded(Bytes(b), 10_000, 4*int64(len(b))+4*mib)
	before := heapAllocs()
	m, parts, err := p.Open(ctx, src)
	if n, limit := heapAllocs()-before, uint64(32*mib+64*int64(len(b))); n > limit {
		return nil, fmt.Errorf("open allocated %d bytes for a file of %d (error: %v)", n, len(b), err)
	}
	if err != nil {
		if !Clean(err) {
			return nil, fmt.Errorf("open: %q is no clean refusal", err)
		}
		return nil, nil
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("machine %+v: %w", m, err)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("a package without a disk was opened")
	}
	for i, x := range parts {
		if x.Number != i || x.Off < 512 || x.Len < 0 || x.Len > int64(len(b))-x.Off || x.Name == "" || strings.ContainsAny(x.Name, `/\`) || x.Size < 0 {
			return nil, fmt.Errorf("part %d of %d bytes: %+v", i, len(b), x)
		}
		for _, y := range parts[:i] {
			if x.Off < y.Off+y.Len && y.Off < x.Off+x.Len {
				return nil, fmt.Errorf("parts %+v and %+v overlap", y, x)
			}
		}
	}
	if v, ok := p.(codec.Digested); ok {
		if err := v.Verify(ctx, Bytes(b)); err != nil && !Clean(err) {
			return nil, fmt.Errorf("verify: %q is no clean refusal", err)
		}
	}
	return parts, nil
}

// DamagePackages damages packages at random and opens them: each is refused, or
// its parts are what the standard library's reader of archives finds under their
// names, or, where only that refuses, the parts of the undamaged one. It is a sample that is the
// same in every run, or as many as IMAGEFS_HOSTILE_FLIPS says, others in every
// run, or those of IMAGEFS_HOSTILE_SEED.
func DamagePackages(t *testing.T, p codec.Package, good ...[]byte) {
	t.Helper()
	n, seed := 100, uint64(1)
	if s := os.Getenv("IMAGEFS_HOSTILE_FLIPS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("IMAGEFS_HOSTILE_FLIPS: %v", err)
		}
		seed = uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("IMAGEFS_HOSTILE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("IMAGEFS_HOSTILE_SEED: %v", err)
		}
	}
	t.Logf("IMAGEFS_HOSTILE_SEED=%d", seed)
	for i, b := range good {
		undamaged, err := OpenHostilePackage(p, b)
		if err != nil || undamaged == nil {
			t.Fatalf("package %d, undamaged: %v, or refused", i, err)
		}
		if read, err := sameMembers(b, undamaged); !read || err != nil {
			t.Fatalf("package %d, undamaged: read %v, %v", i, read, err)
		}
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		refused, strict := 0, 0
		for range n {
			bad, what := damagePackage(r, b)
			parts, err := OpenHostilePackage(p, bad)
			if err == nil && parts != nil {
				var read bool
				if read, err = sameMembers(bad, parts); !read && err == nil {
					strict++
					if !slices.Equal(parts, undamaged) {
						err = fmt.Errorf("archive/tar refuses it, and the parts are %+v, undamaged %+v", parts, undamaged)
					}
				}
			}
			if err != nil {
				t.Errorf("package %d, %s: %v", i, what, err)
			}
			if parts == nil {
				refused++
			}
		}
		t.Logf("package %d: %d of %d refused, %d by archive/tar alone", i, refused, n, strict)
	}
}

// sameMembers compares the parts of a package with what the standard library's
// reader of archives finds under their names. It is not read if that refuses the
// archive, as it does for a wrong owner, mode or time.
func sameMembers(b []byte, parts []codec.Part) (read bool, err error) {
	want := make(map[string][]byte)
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, nil
		}
		if want[path.Clean(h.Name)], err = io.ReadAll(r); err != nil {
			return false, nil
		}
	}
	for _, x := range parts {
		w, ok := want[x.Name]
		if !ok || !bytes.Equal(b[x.Off:x.Off+x.Len], w) {
			return true, fmt.Errorf("part %+v is not what archive/tar reads (%d bytes, %v)", x, len(w), ok)
		}
	}
	return true, nil
}

// damagePackage damages a tar archive: a bit, a byte, a word of its texts or a
// sector, or cuts it. Sums of headers are made to fit most times, or nothing
// behind them would be reached.
func damagePackage(r *rand.Rand, good []byte) (bad []byte, what string) {
	b := bytes.Clone(good)
	// Sectors with text: headers and small members, the disks are zeros mostly.
	var texts []int
	for off := 0; off+512 <= len(b); off += 512 {
		if k := bytes.IndexByte(b[off:off+512], 0); k < 0 || k > 4 || isHeader(b[off:]) {
			texts = append(texts, off)
		}
	}
	at := texts[r.IntN(len(texts))] + r.IntN(512)
	switch k := r.IntN(12); {
	case k < 3:
		bit := r.IntN(8)
		b[at] ^= 1 << bit
		what = fmt.Sprintf("bit %d of byte %#x flipped", bit, at)
	case k < 6:
		words := []string{"0", "9", "99999999999", "-1", "7777777", "\x80", "\xff\xff\xff\xff", "\x00", `"`, "<", ">", "&", "/", "..", "{", "}", "[", ",", "null", "disk0", "disk1", "file0", "file1"}
		w := words[r.IntN(len(words))]
		copy(b[at:], w)
		what = fmt.Sprintf("%q put at %#x", w, at)
	case k < 7:
		b[at&^511+156] = "0157LKxgS2\x00Z"[r.IntN(12)]
		what = fmt.Sprintf("type at %#x is %q", at&^511+156, b[at&^511+156])
	case k < 8:
		field := []byte(fmt.Sprintf("%011o\x00", r.Uint64()>>r.IntN(64)))
		copy(b[at&^511+124:], field[max(0, len(field)-12):])
		what = fmt.Sprintf("size at %#x is %q", at&^511+124, field)
	case k < 9:
		from := texts[r.IntN(len(texts))]
		copy(b[at&^511:][:512], b[from:from+512])
		what = fmt.Sprintf("sector %#x put at %#x", from, at&^511)
	case k < 10:
		n := r.IntN(len(b))
		b = b[:n]
		what = fmt.Sprintf("cut to %d of %d bytes", n, len(good))
	case k < 11:
		from := texts[r.IntN(len(texts))]
		b = append(b[:from:from], b[from+512:]...)
		what = fmt.Sprintf("sector %#x taken out", from)
	default:
		from := r.IntN(len(b) - 16)
		copy(b[at:], b[from:from+16])
		what = fmt.Sprintf("16 bytes of %#x put at %#x", from, at)
	}
	if r.IntN(5) > 0 {
		for off := 0; off+512 <= len(b); off += 512 {
			if isHeader(b[off:]) {
				resealTar(b[off : off+512])
			}
		}
		what += ", checksums fit"
	}
	return b, what
}

func isHeader(b []byte) bool { return len(b) >= 512 && string(b[257:262]) == "ustar" }

// resealTar makes the sum of a tar header fit.
func resealTar(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}
