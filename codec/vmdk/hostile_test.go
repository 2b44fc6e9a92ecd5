package vmdk

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// image is a small laid out file that a test damages.
func image(t testing.TB, v codec.View, d *codectest.Disk) []byte {
	t.Helper()
	f, err := v.Layout(context.Background(), d, codectest.TestFacts())
	if err != nil {
		t.Fatal(err)
	}
	b, err := codectest.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func small() *codectest.Disk {
	return codectest.New("small", 33*mib+512, 1, codectest.Range{Off: 0, Len: 70 * kib}, codectest.Range{Off: 33 * mib, Len: 512})
}

// text replaces the descriptor.
func text(b []byte, s string) {
	room := b[sector : sector*(1+descriptorSectors)]
	clear(room)
	copy(room, s)
}

// edit replaces words of the descriptor.
func edit(b []byte, old, new string) {
	s, _, _ := strings.Cut(string(b[sector:sector*(1+descriptorSectors)]), "\x00")
	if !strings.Contains(s, old) {
		panic("no " + old)
	}
	text(b, strings.Replace(s, old, new, 1))
}

const extent = `RW 67585 SPARSE "disk1.sparse.vmdk"`

// TestRefusals: what is refused, of which kind the error is, and that it names
// what is wrong.
func TestRefusals(t *testing.T) {
	u32 := func(off int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[off:], v) } }
	u64 := func(off int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[off:], v) } }
	ed := func(old, new string) func([]byte) { return func(b []byte) { edit(b, old, new) } }
	// Both copies of all tables, each with its directory of one sector.
	const rgd, gd = 21, 21 + 1 + 2*4
	both := func(off int64, v uint32) func([]byte) {
		return func(b []byte) {
			le.PutUint32(b[rgd*sector+off:], v)
			le.PutUint32(b[gd*sector+off:], v)
		}
	}
	none := func(v uint32) func([]byte) {
		return func(b []byte) {
			u32(8, flagNewlines)(b) // no redundant tables
			both(sector, v)(b)
		}
	}
	tests := []struct {
		name   string
		stream bool
		damage func([]byte)
		want   error
		words  string
	}{
		{"wrong magic", false, u32(0, 0x12345678), codec.ErrFormat, "magic"},
		{"COWD", false, func(b []byte) { copy(b, "COWD") }, codec.ErrUnsupported, "COWD"},
		{"seSparse", false, u64(0, 0xcafebabe), codec.ErrUnsupported, "seSparse"},
		{"text transfer", false, func(b []byte) { copy(b[73:], "\n \n\n") }, codec.ErrCorrupt, "text transfer"},
		{"version 0", false, u32(4, 0), codec.ErrUnsupported, "version 0"},
		{"version 4", false, u32(4, 4), codec.ErrUnsupported, "version 4"},
		{"unknown flag", false, u32(8, 1<<20|3), codec.ErrUnsupported, "flags 0x100000"},
		{"unknown algorithm", true, func(b []byte) { le.PutUint16(b[77:], 2) }, codec.ErrUnsupported, "compressAlgorithm 2"},
		{"flag without algorithm", true, func(b []byte) { le.PutUint16(b[77:], 0) }, codec.ErrCorrupt, "compressAlgorithm"},
		{"markers without compression", false, u32(8, flagMarkers|3), codec.ErrUnsupported, "markers"},
		{"compression without markers", true, u32(8, flagCompressed|1), codec.ErrUnsupported, "markers"},
		{"grainSize 0", false, u64(20, 0), codec.ErrCorrupt, "grainSize"},
		{"grainSize 4", false, u64(20, 4), codec.ErrCorrupt, "grainSize"},
		{"grainSize 96", false, u64(20, 96), codec.ErrCorrupt, "grainSize"},
		{"grainSize 4096", false, u64(20, 4096), codec.ErrCorrupt, "grainSize"},
		{"grainSize huge", false, u64(20, 1<<63), codec.ErrCorrupt, "grainSize"},
		{"entries 0", false, u32(44, 0), codec.ErrCorrupt, "numGTEsPerGT"},
		{"entries 500", false, u32(44, 500), codec.ErrCorrupt, "numGTEsPerGT"},
		{"entries 2^31", false, u32(44, 1<<31), codec.ErrCorrupt, "numGTEsPerGT"},
		{"capacity 2^64-1", false, u64(12, 1<<64-1), codec.ErrCorrupt, "capacity"},
		{"capacity of PiB", false, u64(12, 1<<42), codec.ErrUnsupported, "capacity"},
		{"capacity of TiB", false, func(b []byte) { u64(12, 1<<37)(b); ed(extent, `RW 137438953472 SPARSE "d"`)(b) }, codec.ErrCorrupt, "grain directory"},
		{"no descriptor", false, u64(28, 0), codec.ErrUnsupported, "split"},
		{"descriptor outside", false, u64(28, 1<<55), codec.ErrCorrupt, "descriptor"},
		{"descriptor at the end", true, u64(28, 500), codec.ErrCorrupt, "descriptor"},
		{"descriptor too long", false, u64(36, 2049), codec.ErrCorrupt, "descriptorSize"},
		{"descriptor of no length", false, u64(36, 0), codec.ErrCorrupt, "descriptorSize"},
		{"descriptor of zeros", false, func(b []byte) { text(b, "") }, codec.ErrCorrupt, "descriptor"},
		{"line of noise", false, ed("version=1", "version"), codec.ErrCorrupt, `line 2 is no setting and no extent: "version"`},
		{"two CIDs of a parent", false, ed("createType", "parentCID=ffffffff\ncreateType"), codec.ErrCorrupt, "sets parentcid again"},
		{"parent", false, ed("parentCID=ffffffff", "parentCID=12345678"), codec.ErrUnsupported, `delta of another image (parentCID "12345678"`},
		{"parent's name", false, ed("parentCID=ffffffff", "parentCID=ffffffff\nparentFileNameHint=\"/etc/passwd\""), codec.ErrUnsupported, `"/etc/passwd"`},
		{"parent of noise", false, ed("parentCID=ffffffff", "parentCID=none"), codec.ErrCorrupt, "parentCID"},
		{"descriptor version", false, ed("version=1", "version=9"), codec.ErrUnsupported, `version "9"`},
		{"no createType", false, ed("createType", "CreatedType"), codec.ErrCorrupt, "createType"},
		{"new createType", false, ed("monolithicSparse", "poly\nlithic"), codec.ErrCorrupt, "descriptor line"},
		{"unknown createType", false, ed("monolithicSparse", "polylithic\x1b"), codec.ErrUnsupported, `"polylithic\x1b"`},
		{"no extent", false, ed(extent, ""), codec.ErrCorrupt, "extent line"},
		{"two extents", false, ed(extent, extent+"\n"+extent), codec.ErrUnsupported, "2 extents"},
		{"flat extent", false, ed(extent, `RW 67585 FLAT "/etc/shadow" 0`), codec.ErrUnsupported, `type "FLAT": "/etc/shadow"`},
		{"zero extent", false, ed(extent, `RW 67585 ZERO`), codec.ErrUnsupported, `"ZERO"`},
		{"no access", false, ed("RW ", "NOACCESS "), codec.ErrUnsupported, "NOACCESS"},
		{"slash in the name", false, ed("disk1", "../disk1"), codec.ErrUnsupported, `"../disk1.sparse.vmdk"`},
		{"backslash in the name", false, ed("disk1", `c:\disk1`), codec.ErrUnsupported, `"c:\\disk1.sparse.vmdk"`},
		{"extent of few words", false, ed(extent, `RW SPARSE "x"`), codec.ErrCorrupt, "2 words"},
		{"extent of no number", false, ed("67585", "-67585"), codec.ErrCorrupt, `"-67585"`},
		{"extent longer", false, ed("67585", "67586"), codec.ErrCorrupt, "extent line of 67586"},
		{"extent shorter", false, ed("67585", "67584"), codec.ErrCorrupt, "extent line of 67584"},
		{"directory 0", false, func(b []byte) { u64(56, 0)(b); u64(48, 0)(b) }, codec.ErrCorrupt, "grain directory at sector 0x0"},
		{"directory outside", false, func(b []byte) { u64(56, 1<<63)(b); u64(48, 1<<63)(b) }, codec.ErrCorrupt, "grain directory"},
		{"directory in the descriptor", false, func(b []byte) { u64(56, 20)(b); u64(48, 20)(b) }, codec.ErrCorrupt, "share"},
		{"tables outside", false, both(0, 1<<31), codec.ErrCorrupt, "entry 0 of the grain directory"},
		{"one table twice", false, func(b []byte) { both(0, 22)(b); both(4, 22)(b) }, codec.ErrCorrupt, "entries 0 and 1"},
		{"tables overlap", false, func(b []byte) { both(0, 22)(b); both(4, 23)(b) }, codec.ErrCorrupt, "entries 0 and 1"},
		{"table is its directory", false, both(0, gd), codec.ErrCorrupt, "share"},
		{"grain outside", false, none(1 << 30), codec.ErrCorrupt, "entry 0"},
		{"grain is the header", false, none(1), codec.ErrCorrupt, "share"},
		{"grain is a table", false, none(gd + 1), codec.ErrCorrupt, "share"},
		{"grain twice", false, none(128 + 128), codec.ErrCorrupt, "share"},
	}
	for _, kind := range []string{
		"monolithicFlat", "vmfs", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfsSparse", "seSparse",
		"vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap", "fullDevice", "partitionedDevice", "custom",
	} {
		tests = append(tests, struct {
			name   string
			stream bool
			damage func([]byte)
			want   error
			words  string
		}{"createType " + kind, false, ed("monolithicSparse", kind), codec.ErrUnsupported, `createType "` + kind + `"`})
	}
	sparseImage, streamImage := image(t, Sparse, small()), image(t, Format, small())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(sparseImage)
			if tt.stream {
				b = bytes.Clone(streamImage)
			}
			tt.damage(b)
			codectest.Refused(t, Format, b, tt.want, tt.words)
		})
	}
}

// TestDescriptorOnly: a text file leads to others, which it names.
func TestDescriptorOnly(t *testing.T) {
	const head = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
	for _, tt := range []struct{ text, words string }{
		{head + "createType=\"monolithicFlat\"\nRW 100 FLAT \"/dev/sda\" 0\n", `createType "monolithicFlat": its data are in another file: "/dev/sda"`},
		{head + "createType=\"twoGbMaxExtentSparse\"\n" + strings.Repeat("RW 4192256 SPARSE \"x-s001.vmdk\"\r\n", 5), "and 2 more"},
		{head + "createType=\"fullDevice\"\nRW 100 FLAT \"\\\\.\\PhysicalDrive0\" 0\n", "host device"},
		{head + "createType=\"monolithicSparse\"\nRW 100 SPARSE \"other.vmdk\"\n", `descriptor without its extents: "other.vmdk"`},
		{"#comment\n\nversion=1\nRW 1 FLAT \"x\"", "descriptor without its extents"},
	} {
		_, err := Format.Open(context.Background(), codectest.Bytes([]byte(tt.text)))
		if !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("open %.120q: %v, want a refusal with %q", tt.text, err, tt.words)
		}
	}
}

// TestFooter: it has to be there, once, and say what the header says.
func TestFooter(t *testing.T) {
	fresh := image(t, Format, small())
	at := len(fresh) - 2*sector
	open := func(b []byte) error {
		d, err := Format.Open(context.Background(), codectest.Bytes(b))
		if err == nil {
			err = codectest.Same(d, small())
		}
		return err
	}
	for _, n := range []int{0, 1, 100, sector, 127 * sector} {
		if err := open(append(bytes.Clone(fresh), make([]byte, n)...)); err != nil {
			t.Errorf("%d zeros behind the end: %v", n, err)
		}
	}
	if err := open(fresh[:len(fresh)-sector]); err != nil {
		t.Errorf("without the end of the stream: %v", err)
	}
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
		words  string
	}{
		{"padding without end", func(b []byte) []byte { return append(b, make([]byte, 200*sector)...) }, "truncated"},
		{"cut in the footer", func(b []byte) []byte { return b[:at+100] }, "truncated"},
		{"cut in the records", func(b []byte) []byte { return b[:200*sector] }, "truncated"},
		{"noise behind", func(b []byte) []byte { return append(b, bytes.Repeat([]byte{1}, sector)...) }, "truncated"},
		{"refers to itself", func(b []byte) []byte { le.PutUint64(b[at+56:], atFooter); return b }, "refers to the footer"},
		{"other marker", func(b []byte) []byte { b[at-sector+12] = markerTable; return b }, "marker before the footer"},
		{"mangled", func(b []byte) []byte { b[at+75] = '\n'; return b }, "footer at 0x"},
		{"directory outside", func(b []byte) []byte { le.PutUint64(b[at+56:], 1<<40); return b }, "grain directory"},
		{"version", func(b []byte) []byte { b[at+4] = 1; return b }, "version is 0x3 in the header and 0x1 in the footer"},
		{"flags", func(b []byte) []byte { b[at+8] |= 4; return b }, "flags"},
		{"capacity", func(b []byte) []byte { b[at+12]++; return b }, "capacity"},
		{"grainSize", func(b []byte) []byte { b[at+20] = 64; return b }, "grainSize"},
		{"descriptor", func(b []byte) []byte { b[at+28]++; return b }, "descriptorOffset"},
		{"descriptor's size", func(b []byte) []byte { b[at+36]++; return b }, "descriptorSize"},
		{"entries", func(b []byte) []byte { b[at+45] = 1; return b }, "numGTEsPerGT"},
		{"algorithm", func(b []byte) []byte { b[at+77] = 0; return b }, "compressAlgorithm"},
	} {
		if err := open(tt.damage(bytes.Clone(fresh))); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v, want %q and in it %q", tt.name, err, codec.ErrCorrupt, tt.words)
		}
	}
}

// TestRedundant: where the directory or its tables are damaged, the other copy
// serves, and a note says so.
func TestRedundant(t *testing.T) {
	const gd = 21 + 1 + 2*4
	for name, damage := range map[string]func([]byte){
		"directory outside": func(b []byte) { le.PutUint64(b[56:], 1<<30) },
		"no directory":      func(b []byte) { le.PutUint64(b[56:], 0) },
		"table outside":     func(b []byte) { le.PutUint32(b[gd*sector:], 1<<31) },
		"grain outside":     func(b []byte) { le.PutUint32(b[(gd+1)*sector:], 1<<31) },
	} {
		b := image(t, Sparse, small())
		damage(b)
		d, err := Format.Open(context.Background(), codectest.Bytes(b))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := codectest.Same(d, small()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if notes := d.(codec.Noted).Notes(); len(notes) != 1 || !strings.Contains(notes[0], "redundant grain directory is used") {
			t.Errorf("%s: notes %q, want one of the redundant directory", name, notes)
		}
	}
}

// TestStoreErrorIsNoDamage: a store that fails does not bring the redundant
// tables into use.
func TestStoreErrorIsNoDamage(t *testing.T) {
	b := image(t, Sparse, small())
	const gd = 21 + 1 + 2*4
	src := codectest.FaultyAt(codectest.Bytes(b), codectest.ErrBoom, gd*sector, sector)
	if _, err := Format.Open(context.Background(), src); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("open: %v, want the store's error", err)
	}
}

// TestUnclean: read, with a note.
func TestUnclean(t *testing.T) {
	b := image(t, Sparse, small())
	b[72] = 1
	d, err := Format.Open(context.Background(), codectest.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	if notes := d.(codec.Noted).Notes(); len(notes) != 1 || !strings.Contains(notes[0], "cleanly") {
		t.Errorf("notes %q", notes)
	}
}

// TestZeroedGrain: entry 1 is zeros with flag bit 2, else a sector.
func TestZeroedGrain(t *testing.T) {
	for _, v := range []codec.View{Sparse, Format} {
		b := image(t, v, small())
		at := 31 * sector // of the only table's entries in either layout
		if v == Format {
			at = (streamFirst + 2*recordSectors + 1) * sector
			b[len(b)-2*sector+8] |= flagZeroGrain
		} else {
			le.PutUint32(b[22*sector:], 1)
		}
		b[8] |= flagZeroGrain
		if le.Uint32(b[at:]) == 0 {
			t.Fatal("no table where one was looked for")
		}
		le.PutUint32(b[at:], 1)
		d, err := Format.Open(context.Background(), codectest.Bytes(b))
		if err != nil {
			t.Errorf("%s: %v", v.Name(), err)
			continue
		}
		es, err := codectest.Extents(d)
		if err != nil || len(es) == 0 || es[0] != (codec.Extent{Off: 0, Len: grainLen, Zero: true}) {
			t.Errorf("%s: extents %v, %v, want the first grain to be zeros", v.Name(), es, err)
		}
	}
}

// deflated makes a zlib stream.
func deflated(p []byte) []byte {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

// headStream is a streamOptimized image with tables at the head, as open-vmdk
// writes it: one group, the given data of its records.
func headStream(sectors int64, grains map[int64][]byte) []byte {
	const gd = 21
	h := header{
		version: 3, flags: flagNewlines | flagCompressed | flagMarkers, capacity: uint64(sectors), grainSize: grainSectors,
		descriptorOffset: 1, descriptorSize: descriptorSectors, tableEntries: tableGrains, gdOffset: gd, overHead: 128, algorithm: algorithmDeflate,
	}
	b := make([]byte, 128*sector)
	copy(b, h.marshal())
	d, err := newDescriptor("vmdk", "streamOptimized", sectors, codectest.TestFacts())
	if err != nil {
		panic(err)
	}
	copy(b[sector:], d)
	le.PutUint32(b[gd*sector:], gd+1)
	for i := range codec.Ceil(sectors, grainSectors) {
		data, ok := grains[i]
		if !ok {
			continue
		}
		le.PutUint32(b[(gd+1)*sector+4*i:], uint32(len(b)/sector))
		rec := make([]byte, codec.Up(int64(recordHead+len(data)), sector))
		le.PutUint64(rec, uint64(i*grainSectors))
		le.PutUint32(rec[8:], uint32(len(data)))
		copy(rec[recordHead:], data)
		b = append(b, rec...)
	}
	return append(b, make([]byte, sector)...)
}

// TestGrains: what a record may hold.
func TestGrains(t *testing.T) {
	d := codectest.Full(2*grainLen+3*sector, 1).Soft()
	want, err := codectest.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	first, last := want[:grainLen], want[2*grainLen:]
	good := deflated(first)
	read := func(g map[int64][]byte, damage func([]byte)) error {
		b := headStream(d.Size()/sector, g)
		if damage != nil {
			damage(b)
		}
		disk, err := Format.Open(context.Background(), codectest.Bytes(b))
		if err != nil {
			return err
		}
		got, err := codectest.ReadAll(disk)
		for i := int64(0); err == nil && i < 3; i++ {
			p := want[i*grainLen : min((i+1)*grainLen, int64(len(want)))]
			q := got[i*grainLen:][:len(p)]
			if g[i] != nil && !bytes.Equal(p, q) || g[i] == nil && !codec.Empty(q) {
				err = errors.New("other bytes")
			}
		}
		return err
	}
	full := append(bytes.Clone(last), make([]byte, grainLen-3*sector)...)
	for name, g := range map[string]map[int64][]byte{
		"none":                    {},
		"a short last grain":      {0: good, 2: deflated(last)},
		"a full last grain":       {2: deflated(full)},
		"a last grain in between": {2: deflated(full[:10*sector])},
		"all":                     {0: good, 1: deflated(want[grainLen : 2*grainLen]), 2: deflated(last)},
		"bytes behind the stream": {0: append(bytes.Clone(good), 1, 2, 3)},
	} {
		if err := read(g, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := bytes.Clone(good)
	bad[len(bad)-1]++
	badLast := deflated(last)
	badLast[len(badLast)-1]++
	var raw bytes.Buffer
	raw.Write(good[2 : len(good)-4])
	for _, tt := range []struct {
		name   string
		grains map[int64][]byte
		damage func([]byte)
		words  string
	}{
		{"wrong adler32", map[int64][]byte{0: bad}, nil, "checksum"},
		{"wrong adler32 of a short one", map[int64][]byte{2: badLast}, nil, "checksum"},
		{"no adler32", map[int64][]byte{0: good[:len(good)-4]}, nil, "unexpected EOF"},
		{"no adler32 of a short one", map[int64][]byte{2: badLast[:len(badLast)-4]}, nil, "unexpected EOF"},
		{"no zlib header", map[int64][]byte{0: raw.Bytes()}, nil, "header"},
		{"short first grain", map[int64][]byte{0: deflated(first[:grainLen-1])}, nil, "65535 of its 65536"},
		{"shorter than the disk", map[int64][]byte{2: deflated(last[:len(last)-1])}, nil, "inflates to 1535"},
		{"too long", map[int64][]byte{0: deflated(append(bytes.Clone(first), 0))}, nil, "more than its"},
		{"a bomb", map[int64][]byte{0: deflated(make([]byte, 64*mib))}, nil, "more than its"},
		{"other sector", map[int64][]byte{0: good}, func(b []byte) { b[128*sector]++ }, "guest sector 0x1, want 0x0"},
		{"a marker", map[int64][]byte{0: good}, func(b []byte) { le.PutUint32(b[128*sector+8:], 0) }, "data of 0 bytes"},
		{"length of 4 GiB", map[int64][]byte{0: good}, func(b []byte) { le.PutUint32(b[128*sector+8:], 1<<32-1) }, "data of 4294967295 bytes"},
		{"length past the end", map[int64][]byte{0: good}, func(b []byte) { le.PutUint32(b[128*sector+8:], 130000) }, "cut by the end"},
	} {
		if err := read(tt.grains, tt.damage); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v, want %q and in it %q", tt.name, err, codec.ErrCorrupt, tt.words)
		}
	}
}

// TestRoundedCapacity: VirtualBox has the exact size in the extent line only.
func TestRoundedCapacity(t *testing.T) {
	d := codectest.Full(2*grainLen+3*sector, 1)
	for _, v := range []codec.View{Sparse, Format} {
		b := image(t, v, d)
		le.PutUint64(b[12:], 3*grainSectors)
		if v == Format {
			le.PutUint64(b[len(b)-2*sector+12:], 3*grainSectors)
		}
		got, err := Format.Open(context.Background(), codectest.Bytes(b))
		if err != nil {
			t.Errorf("%s: %v", v.Name(), err)
			continue
		}
		if got.Size() != d.Size() {
			t.Errorf("%s: size %d, want that of the extent line, %d", v.Name(), got.Size(), d.Size())
		}
		if err := codectest.Same(got, d); err != nil {
			t.Errorf("%s: %v", v.Name(), err)
		}
	}
}

// TestManyTables: a directory that aims at one table costs no memory, and one
// that is as large as the file is read with few reads.
func TestManyTables(t *testing.T) {
	const n = 1 << 18
	h := header{
		version: 1, flags: flagNewlines, capacity: n * tableGrains * grainSectors, grainSize: grainSectors,
		descriptorOffset: 1, descriptorSize: descriptorSectors, tableEntries: tableGrains, gdOffset: 21, overHead: 128,
	}
	d, err := newDescriptor("vmdk", "monolithicSparse", int64(h.capacity), codectest.TestFacts())
	if err != nil {
		t.Fatal(err)
	}
	b := append(h.marshal(), d...)
	dir := make([]byte, 4*n)
	for i := range n {
		binary.LittleEndian.PutUint32(dir[4*i:], uint32(21+4*n/sector))
	}
	b = append(append(b, dir...), make([]byte, 4*sector)...)
	if d, err := codectest.OpenHostile(Format, b); d != nil || err != nil {
		t.Errorf("open: %v, %v, want a refusal that costs little", d, err)
	}
}
