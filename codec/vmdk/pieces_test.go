package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// convertSplit lets qemu-img make a split image of a raw file and returns the
// descriptor's path.
func convertSplit(t testing.TB, raw, kind string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "vm one.vmdk")
	codectest.Exec(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat="+kind, raw, out)
	return out
}

// openSplit joins the pieces beside the descriptor at path.
func openSplit(t testing.TB, path string) codec.Disk {
	t.Helper()
	p, err := ParsePieces(context.Background(), codectest.File(t, path))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]codec.Source{}
	for _, name := range p.Names() {
		files[name] = codectest.File(t, filepath.Join(filepath.Dir(path), name))
	}
	d, err := p.Open(context.Background(), files)
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != p.Size() {
		t.Errorf("disk of %d bytes, its pieces have %d", d.Size(), p.Size())
	}
	return d
}

// TestPiecesOfQEMU: what qemu-img writes in several files is read as it reads
// it itself.
func TestPiecesOfQEMU(t *testing.T) {
	const gib = 1 << 30
	for _, d := range []*codectest.Disk{
		codectest.Full(512, 1),
		codectest.Full(3*mib+512, 1),
		codectest.Scattered(100*mib, 60, 3).Soft(),
		codectest.LastSector(33*mib + 512),
		codectest.New("three-pieces", 5*gib+64*kib, 4, codectest.Range{Off: 2*gib - 70*kib, Len: 200 * kib},
			codectest.Range{Off: 4*gib - 512, Len: 512}, codectest.Range{Off: 5 * gib, Len: 64 * kib}),
	} {
		raw := codectest.RawFile(t, d)
		for _, kind := range []string{"monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"} {
			t.Run(kind+"/"+d.Name, func(t *testing.T) {
				path := convertSplit(t, raw, kind)
				got := openSplit(t, path)
				if got.Size() != d.Size() {
					t.Errorf("size %d, want %d", got.Size(), d.Size())
				}
				if err := codectest.Same(got, d); err != nil {
					t.Error(err)
				}
				if err := got.(interface{ Verify(context.Context) error }).Verify(context.Background()); err != nil {
					t.Error(err)
				}
				// qemu-img reads the descriptor's disk the same.
				out := filepath.Join(t.TempDir(), "joined")
				if kind != "twoGbMaxExtentSparse" { // else holes are left out
					got = holed{got, d}
				}
				codectest.WriteFile(t, out, got)
				codectest.Compare(t, "vmdk", path, out)
			})
		}
	}
}

// holed is a disk whose holes another one knows.
type holed struct {
	codec.Disk
	holes *codectest.Disk
}

func (s holed) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return s.holes.Extents(ctx, off, n)
}

// pieceFiles are the files of a mixed image: zeros, flat data that begin at
// sector 3, a sparse extent and VMFS data.
func pieceFiles(t testing.TB) (text string, files map[string]codec.Source, want []byte) {
	t.Helper()
	body := func(d *codectest.Disk) []byte {
		b, err := codectest.ReadAll(d)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a, c := body(codectest.Full(10*512, 1)), body(codectest.Full(7*512, 2))
	s := codectest.New("piece", 300*kib, 3, codectest.Range{Off: 64 * kib, Len: 64 * kib})
	img := image(t, Sparse, s)
	clear(img[sector : sector*(1+descriptorSectors)])
	files = map[string]codec.Source{
		"a.bin": codectest.Bytes(a), "s.vmdk": codectest.Bytes(img), "c.vmdk": codectest.Bytes(c),
	}
	want = slices.Concat(make([]byte, 2*512), a[3*512:8*512], body(s), make([]byte, 512), c)
	text = fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n"+
		"RW 2 ZERO\nRDONLY 5 FLAT \"a.bin\" 3\nRW %d SPARSE \"s.vmdk\"\nRW 1 ZERO\nRW 7 VMFS \"c.vmdk\"\n", s.Size()/512)
	return text, files, want
}

func TestPiecesOfSeveralKinds(t *testing.T) {
	ctx := context.Background()
	text, files, want := pieceFiles(t)
	p, err := ParsePieces(ctx, codectest.Bytes([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Names(); !slices.Equal(got, []string{"a.bin", "s.vmdk", "c.vmdk"}) {
		t.Errorf("names %q", got)
	}
	d, err := p.Open(ctx, files)
	if err != nil {
		t.Fatal(err)
	}
	got, err := codectest.ReadAll(d)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes, or %v", err)
	}
	es, err := codectest.Extents(d)
	var data int64
	for _, e := range es {
		if !e.Zero {
			data += e.Len
		}
	}
	if err != nil || data != 12*512+64*kib {
		t.Errorf("%d bytes of data (%v), want those of the pieces: %d", data, err, 12*512+64*kib)
	}
}

// TestPiecesKnowHoles: a file that knows its holes passes them on, and is read
// once for a read.
func TestPiecesKnowHoles(t *testing.T) {
	ctx := context.Background()
	text := "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8192 FLAT \"x\" 2048\n"
	p, err := ParsePieces(ctx, codectest.Bytes([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	src := codectest.New("holes", 6*mib, 1, codectest.Range{Off: 0, Len: 512}, codectest.Range{Off: 2 * mib, Len: mib})
	d, err := p.Open(ctx, map[string]codec.Source{"x": src})
	if err != nil {
		t.Fatal(err)
	}
	es, err := codectest.Extents(d)
	want := []codec.Extent{{Off: 0, Len: mib, Zero: true}, {Off: mib, Len: mib}, {Off: 2 * mib, Len: 2 * mib, Zero: true}}
	if err != nil || !slices.Equal(es, want) {
		t.Errorf("extents %v, %v, want %v", es, err, want)
	}
	before := src.Reads()
	if _, err := d.ReadAt(ctx, make([]byte, mib), mib); err != nil || src.Reads() != before+1 {
		t.Errorf("%d reads, %v, want one", src.Reads()-before, err)
	}
}

func TestPiecesMissing(t *testing.T) {
	ctx := context.Background()
	text, files, _ := pieceFiles(t)
	p, err := ParsePieces(ctx, codectest.Bytes([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	delete(files, "a.bin")
	delete(files, "c.vmdk")
	_, err = p.Open(ctx, files)
	if !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), `2 of its files missing: "a.bin" "c.vmdk"`) {
		t.Errorf("got %v, want one that names both", err)
	}
	var b strings.Builder
	b.WriteString("# Disk DescriptorFile\nversion=1\ncreateType=\"twoGbMaxExtentFlat\"\n")
	for i := range maxPieces {
		fmt.Fprintf(&b, "RW 1 FLAT \"f%d\" 0\n", i)
	}
	if p, err = ParsePieces(ctx, codectest.Bytes([]byte(b.String()))); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(ctx, nil); err == nil || !strings.Contains(err.Error(), "4096 of its files") || len(err.Error()) > 1000 {
		t.Errorf("got %v, want one that names some", err)
	}
}

func TestPiecesRefused(t *testing.T) {
	head := "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\n"
	of := func(kind string, lines ...string) string {
		return head + "createType=\"" + kind + "\"\n" + strings.Join(lines, "\n") + "\n"
	}
	flatLine := func(name string) string { return of("monolithicFlat", `RW 8 FLAT "`+name+`" 0`) }
	for _, c := range []struct {
		name, text string
		err        error
		words      string
	}{
		{"no descriptor", "KDMV", codec.ErrFormat, "no VMDK descriptor"},
		{"nothing", "", codec.ErrFormat, "no VMDK descriptor"},
		{"a script that others take for one", "#!/bin/sh\nversion=1\nRW 1 FLAT \"/etc/passwd\" 0\n", codec.ErrCorrupt, "descriptor begins with"},
		{"too long", head + strings.Repeat("#\n", 1<<19), codec.ErrCorrupt, "at most"},
		{"bytes behind a NUL", flatLine("a") + "\x00" + flatLine("b"), codec.ErrCorrupt, "NUL"},
		{"noise", head + "noise\n", codec.ErrCorrupt, "no setting"},
		{"no createType", head, codec.ErrCorrupt, "createType"},
		{"unknown createType", of("poly", `RW 8 FLAT "a" 0`), codec.ErrUnsupported, `"poly"`},
		{"a whole image's", of("monolithicSparse", `RW 8 SPARSE "a"`), codec.ErrUnsupported, "without the image"},
		{"COWD", of("vmfsSparse", `RW 8 VMFSSPARSE "a"`), codec.ErrUnsupported, "COWD"},
		{"seSparse", of("seSparse", `RW 8 SESPARSE "a"`), codec.ErrUnsupported, "seSparse"},
		{"a whole device", of("fullDevice", `RW 8 FLAT "/dev/sda" 0`), codec.ErrUnsupported, "host device"},
		{"a partition", of("partitionedDevice", `RW 8 FLAT "/dev/sda" 0`), codec.ErrUnsupported, "host device"},
		{"a raw mapping", of("vmfsRawDeviceMap", `RW 8 VMFSRDM "a"`), codec.ErrUnsupported, "host device"},
		{"a raw mapping as custom", of("custom", `RW 8 VMFSRDM "a"`), codec.ErrUnsupported, `type "VMFSRDM"`},
		{"a device as vmfs", of("vmfs", `RW 8 VMFSRAW "a"`), codec.ErrUnsupported, `type "VMFSRAW"`},
		{"sparse in flat", of("monolithicFlat", `RW 8 SPARSE "a"`), codec.ErrUnsupported, `type "SPARSE"`},
		{"flat in sparse", of("twoGbMaxExtentSparse", `RW 8 FLAT "a" 0`), codec.ErrUnsupported, `type "FLAT"`},
		{"descriptor version", strings.Replace(flatLine("a"), "version=1", "version=9", 1), codec.ErrUnsupported, `version "9"`},
		{"parent", strings.Replace(flatLine("a"), "ffffffff", "12345678", 1), codec.ErrUnsupported, "delta"},
		{"parent's name", flatLine("a") + "parentFileNameHint=\"b.vmdk\"\n", codec.ErrUnsupported, "delta"},
		{"no extent", of("monolithicFlat"), codec.ErrCorrupt, "without an extent"},
		{"slash", flatLine("a/b"), codec.ErrUnsupported, "another place"},
		{"absolute", flatLine("/etc/passwd"), codec.ErrUnsupported, "another place"},
		{"backslash", flatLine(`a\b`), codec.ErrUnsupported, "another place"},
		{"device of Windows", flatLine(`\\.\PhysicalDrive0`), codec.ErrUnsupported, "another place"},
		{"drive", flatLine("C:a"), codec.ErrUnsupported, "another place"},
		{"parent folder", flatLine(".."), codec.ErrUnsupported, "another place"},
		{"folder", flatLine("."), codec.ErrUnsupported, "another place"},
		{"no name", flatLine(""), codec.ErrCorrupt, "without a name"},
		{"long name", flatLine(strings.Repeat("a", 256)), codec.ErrCorrupt, "256 bytes"},
		{"control character", flatLine("a\x1b[2J"), codec.ErrCorrupt, `"a\x1b[2J"`},
		{"name twice", of("twoGbMaxExtentFlat", `RW 8 FLAT "a" 0`, `RW 8 FLAT "a" 8`), codec.ErrUnsupported, "twice"},
		{"no quote", of("monolithicFlat", `RW 8 FLAT`), codec.ErrCorrupt, "without quotes"},
		{"one quote", of("monolithicFlat", `RW 8 FLAT "a`), codec.ErrCorrupt, "without quotes"},
		{"flat without a sector", of("monolithicFlat", `RW 8 FLAT "a"`), codec.ErrCorrupt, "no sector"},
		{"negative sector", of("monolithicFlat", `RW 8 FLAT "a" -1`), codec.ErrCorrupt, "no sector"},
		{"huge sector", of("monolithicFlat", `RW 8 FLAT "a" 9223372036854775807`), codec.ErrCorrupt, "no sector"},
		{"words behind", of("monolithicFlat", `RW 8 FLAT "a" 0 "b"`), codec.ErrCorrupt, "no sector"},
		{"sparse from the middle", of("twoGbMaxExtentSparse", `RW 8 SPARSE "a" 1`), codec.ErrUnsupported, "begins at sector 1"},
		{"zeros with a name", of("custom", `RW 8 ZERO "a"`), codec.ErrCorrupt, "type ZERO"},
		{"no sectors", of("monolithicFlat", `RW 0 FLAT "a" 0`), codec.ErrCorrupt, "0 sectors"},
		{"negative sectors", of("monolithicFlat", `RW -8 FLAT "a" 0`), codec.ErrCorrupt, "no number of sectors"},
		{"more than any disk", of("custom", `RW 9007199254740992 ZERO`, `RW 9007199254740992 ZERO`), codec.ErrCorrupt, "larger than any"},
		{"no access", of("monolithicFlat", `NOACCESS 8 FLAT "a" 0`), codec.ErrUnsupported, "NOACCESS"},
		{"too many", of("custom", strings.Repeat("RW 1 ZERO\n", maxPieces+1)), codec.ErrUnsupported, "4097 extents"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParsePieces(context.Background(), codectest.Bytes([]byte(c.text)))
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want %v with %q", err, c.err, c.words)
			}
		})
	}
}

// TestPiecesDamaged: files that are not what the descriptor says.
func TestPiecesDamaged(t *testing.T) {
	ctx := context.Background()
	text, _, _ := pieceFiles(t)
	bytesOf := func(files map[string]codec.Source, name string) []byte {
		b, err := codectest.ReadAll(files[name])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name, file string
		damage     func(b []byte) []byte
		err        error
		words      string
	}{
		{"short flat data", "a.bin", func(b []byte) []byte { return b[:8*512-1] }, codec.ErrCorrupt, "past the end"},
		{"no flat data", "c.vmdk", func(b []byte) []byte { return nil }, codec.ErrCorrupt, "past the end"},
		{"empty sparse file", "s.vmdk", func(b []byte) []byte { return nil }, codec.ErrCorrupt, "no VMDK magic"},
		{"cut header", "s.vmdk", func(b []byte) []byte { return b[:100] }, codec.ErrCorrupt, "the file ends after 100"},
		{"cut tables", "s.vmdk", func(b []byte) []byte { return b[:30*512] }, codec.ErrCorrupt, "past the end"},
		{"cut data", "s.vmdk", func(b []byte) []byte { return b[:len(b)-65536] }, codec.ErrCorrupt, "past the end"},
		{"COWD", "s.vmdk", func(b []byte) []byte { copy(b, "COWD"); return b }, codec.ErrUnsupported, "COWD"},
		{"other capacity", "s.vmdk", func(b []byte) []byte { b[12]++; return b }, codec.ErrCorrupt, "capacity"},
		{"a descriptor in it", "s.vmdk", func(b []byte) []byte { b[513] = 'x'; return b }, codec.ErrUnsupported, "an image by itself"},
		{"a descriptor far away", "s.vmdk", func(b []byte) []byte { b[33] = 1; return b }, codec.ErrCorrupt, "descriptor"},
		{"compressed", "s.vmdk", func(b []byte) []byte { b[10], b[77] = 3, 1; return b }, codec.ErrUnsupported, "compressed"},
		{"unknown flags", "s.vmdk", func(b []byte) []byte { b[11] = 1; return b }, codec.ErrUnsupported, "flags"},
		{"directory at the footer", "s.vmdk", func(b []byte) []byte { le.PutUint64(b[56:], atFooter); return b }, codec.ErrUnsupported, "compressed"},
		{"without a place for a descriptor", "s.vmdk", func(b []byte) []byte { clear(b[28:44]); return b }, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, files, want := pieceFiles(t)
			files[c.file] = codectest.Bytes(c.damage(bytesOf(files, c.file)))
			p, err := ParsePieces(ctx, codectest.Bytes([]byte(text)))
			if err != nil {
				t.Fatal(err)
			}
			d, err := p.Open(ctx, files)
			if c.err == nil {
				if err != nil {
					t.Fatal(err)
				}
				if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
					t.Errorf("other bytes, or %v", err)
				}
				return
			}
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), c.file) {
				t.Errorf("got %v, want %v with %q and %q", err, c.err, c.words, c.file)
			}
		})
	}
}

// TestPiecesRounded: only behind the last extent may a writer round up to a
// grain, since readers that believe the header would move what follows.
func TestPiecesRounded(t *testing.T) {
	ctx := context.Background()
	img := image(t, Sparse, codectest.Full(128*kib, 1))
	clear(img[sector : sector*(1+descriptorSectors)])
	want, _ := codectest.ReadAll(codectest.Full(128*kib, 1))
	for _, c := range []struct {
		lines string
		n     int64
		words string
	}{
		{"RW 200 SPARSE \"s\"", 200, ""},
		{"RW 1 ZERO\nRW 129 SPARSE \"s\"", 130, ""},
		{"RW 200 SPARSE \"s\"\nRW 1 ZERO", 0, "capacity"},
		{"RW 128 SPARSE \"s\"", 0, "capacity"},
		{"RW 257 SPARSE \"s\"", 0, "capacity"},
	} {
		p, err := ParsePieces(ctx, codectest.Bytes([]byte("# Disk DescriptorFile\nversion=1\ncreateType=\"twoGbMaxExtentSparse\"\n"+c.lines)))
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Open(ctx, map[string]codec.Source{"s": codectest.Bytes(img)})
		if c.words != "" {
			if !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%q: got %v, want %q", c.lines, err, c.words)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.lines, err)
			continue
		}
		got, err := codectest.ReadAll(d)
		if k := c.n * 512; err != nil || int64(len(got)) != k || !bytes.HasPrefix(want, got[len(got)-int(d.(*joined).sparse[0].Size()):]) {
			t.Errorf("%q: other bytes, or %v", c.lines, err)
		}
	}
}

func TestPiecesStoreErrors(t *testing.T) {
	ctx := context.Background()
	text, files, _ := pieceFiles(t)
	src := codectest.Bytes([]byte(text))
	for after := range int64(3) {
		if _, err := ParsePieces(ctx, codectest.Faulty(src, codectest.ErrBoom, after)); !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("descriptor after %d reads: %v", after, err)
		}
	}
	p, err := ParsePieces(ctx, src)
	if err != nil {
		t.Fatal(err)
	}
	whole := files["s.vmdk"]
	for after := range int64(4) {
		files["s.vmdk"] = codectest.Faulty(whole, codectest.ErrBoom, after)
		if _, err := p.Open(ctx, files); !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("open after %d reads: %v", after, err)
		}
	}
	files["s.vmdk"], files["a.bin"] = whole, codectest.Faulty(files["a.bin"], codectest.ErrBoom, 0)
	d, err := p.Open(ctx, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(ctx, make([]byte, 5000), 0); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("read: %v", err)
	}
}

// TestPiecesNotes: what is odd about a piece is said with its name, and what
// only some readers would read is refused at an import.
func TestPiecesNotes(t *testing.T) {
	ctx := context.Background()
	text, files, want := pieceFiles(t)
	b, err := codectest.ReadAll(files["s.vmdk"])
	if err != nil {
		t.Fatal(err)
	}
	b[72] = 1
	h, _ := parseHeader(b)
	le.PutUint32(b[h.gdOffset*sector:], 1<<30)
	files["s.vmdk"] = codectest.Bytes(b)
	p, err := ParsePieces(ctx, codectest.Bytes([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Open(ctx, files)
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(d.(codec.Noted).Notes(), "; ")
	if !strings.Contains(notes, `piece "s.vmdk": not closed cleanly`) || !strings.Contains(notes, "redundant grain directory") {
		t.Errorf("notes %q", notes)
	}
	if got, err := codectest.ReadAll(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes, or %v", err)
	}
	if err := d.(*joined).Verify(ctx); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), `"s.vmdk"`) {
		t.Errorf("verified: %v", err)
	}
}

func FuzzPieces(f *testing.F) {
	text, files, _ := pieceFiles(f)
	img, err := codectest.ReadAll(files["s.vmdk"])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, img)
	f.Add(strings.ReplaceAll(text, "\n", "\r\n"), img[:30*512])
	f.Fuzz(func(t *testing.T, text string, img []byte) {
		ctx := context.Background()
		p, err := ParsePieces(ctx, codectest.Bytes([]byte(text)))
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("parse: %v is no clean refusal", err)
			}
			return
		}
		with := map[string]codec.Source{}
		for _, name := range p.Names() {
			with[name] = codectest.Bytes(img)
		}
		d, err := p.Open(ctx, with)
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("open: %v is no clean refusal", err)
			}
			return
		}
		var end int64
		buf := make([]byte, 600)
		for e, err := range d.Extents(ctx, 0, d.Size()) {
			if err != nil || e.Off != end {
				t.Fatalf("extent %+v after %#x, %v", e, end, err)
			}
			end += e.Len
			n := min(int64(len(buf)), e.Len)
			if _, err := d.ReadAt(ctx, buf[:n], e.Off); err != nil {
				t.Fatal(err)
			}
			if e.Zero && !codec.Empty(buf[:n]) {
				t.Errorf("%+v is called zero", e)
			}
		}
		if end != d.Size() {
			t.Errorf("extents end at %#x of %#x", end, d.Size())
		}
	})
}

// TestPiecesNeedNothingElse: the descriptor of a split image is refused as an
// image, with a word on what to do.
func TestPiecesNeedNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.vmdk")
	text, _, _ := pieceFiles(t)
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err := Format.Open(context.Background(), codectest.File(t, path))
	if !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), `"a.bin"`) {
		t.Errorf("got %v, want a refusal that names the pieces", err)
	}
}
