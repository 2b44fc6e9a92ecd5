package image_test

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
	"imagefs/fs/image"
	"imagefs/remote"
	"imagefs/remote/catalog"
	"imagefs/remote/mem"
)

// encoded is a disk that qemu-img encoded, and the index of it.
func encoded(t *testing.T, format string, options ...string) (b, index []byte) {
	t.Helper()
	d := codectest.Scattered(24<<20+512, 20, 7).Soft()
	b, err := os.ReadFile(codectest.Convert(t, format, codectest.RawFile(t, d), options...))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all.Formats {
		if f.Name() == format {
			opened, err := f.Open(t.Context(), codectest.Bytes(b))
			if err != nil {
				t.Fatal(err)
			}
			return b, indexOf(t, opened)
		}
	}
	t.Fatalf("no format %q", format)
	return nil, nil
}

func indexOf(t *testing.T, d codec.Disk) []byte {
	t.Helper()
	x, err := codec.BuildIndex(t.Context(), d, 2, nil)
	if err != nil || x == nil {
		t.Fatalf("%v, %v", x, err)
	}
	defer x.Close()
	var w bytes.Buffer
	if _, err := x.WriteTo(&w); err != nil {
		t.Fatal(err)
	}
	return w.Bytes()
}

// putIndex stores an index and names it for a disk that is adopted.
func putIndex(t *testing.T, s remote.Store, cat *catalog.Catalog, name, format string, index []byte) catalog.Index {
	t.Helper()
	put(t, s, "index/"+name, index)
	sum := sha256.Sum256(index)
	x := catalog.Index{Key: "index/" + name, Size: int64(len(index)), SHA256: hex.EncodeToString(sum[:])}
	if _, err := cat.PutIndex(t.Context(), name, 0, name+"."+format, x); err != nil {
		t.Fatal(err)
	}
	return x
}

// view returns the flavour of that name.
func view(t *testing.T, name string) codec.View {
	t.Helper()
	for _, v := range all.Flavours {
		if v.Name() == name {
			return v
		}
	}
	t.Fatalf("no view %q", name)
	return nil
}

// TestStreamsAreHandedOn shows disks in the encoding they are stored in, and in
// no other.
func TestStreamsAreHandedOn(t *testing.T) {
	for _, tt := range []struct {
		name, format string
		options      []string
		views        map[string]string // by name, and why not, "" if shown
	}{
		{"zlib", "qcow2", []string{"-c"}, map[string]string{
			"zlib.qcow2": "", "deflate.vmdk": "", "zstd.qcow2": "not stored as zstd-compressed qcow2",
		}},
		{"large", "qcow2", []string{"-c", "-o", "cluster_size=128k"}, map[string]string{
			"zlib.qcow2": "", "deflate.vmdk": "stored in clusters of 128 KiB, VMDK grains are 64 KiB",
		}},
		{"zstd", "qcow2", []string{"-c", "-o", "compression_type=zstd"}, map[string]string{
			"zstd.qcow2": "", "zlib.qcow2": "not stored as zlib-compressed qcow2 or VMDK", "deflate.vmdk": "not stored as zlib-compressed",
		}},
		{"vmdk", "vmdk", []string{"-o", "subformat=streamOptimized"}, map[string]string{
			"zlib.qcow2": "", "deflate.vmdk": "", "zstd.qcow2": "not stored as zstd-compressed qcow2",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, index := encoded(t, tt.format, tt.options...)
			s := mem.New()
			put(t, s, tt.name+"."+tt.format, b)
			o, cat := opener(t, s, 0)
			putIndex(t, s, cat, tt.name, tt.format, index)
			d, err := open(t, o, cat, tt.name)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := d.File(t.Context(), format(t, "raw"))
			if err != nil {
				t.Fatal(err)
			}
			for name, why := range tt.views {
				v := view(t, name)
				possible := d.Possible(v)
				f, err := d.File(t.Context(), v)
				if why != "" {
					for _, err := range []error{possible, err} {
						if !errors.Is(err, image.ErrNotShown) || !errors.Is(err, codec.ErrNotPossible) || !strings.Contains(err.Error(), why) {
							t.Errorf("%s: %v, want %q", name, err, why)
						}
					}
					continue
				}
				if err != nil || possible != nil {
					t.Errorf("%s: %v, %v", name, err, possible)
					continue
				}
				if f.Size() > int64(len(b))+int64(len(b))/20+256<<10 {
					t.Errorf("%s: %d bytes of %d stored", name, f.Size(), len(b))
				}
				path := filepath.Join(t.TempDir(), "f")
				codectest.WriteFile(t, path, f)
				want := filepath.Join(t.TempDir(), "raw")
				codectest.WriteFile(t, want, raw)
				codectest.Compare(t, name[strings.IndexByte(name, '.')+1:], path, want)
			}
		})
	}
}

// TestIndexIsMissingOrDamaged: a view says so, and is shown once it is made.
func TestIndexIsMissingOrDamaged(t *testing.T) {
	b, index := encoded(t, "qcow2", "-c")
	v := view(t, "zlib.qcow2")
	damaged := bytes.Clone(index)
	damaged[200] ^= 1
	for name, tt := range map[string]struct {
		set  func(s remote.Store, cat *catalog.Catalog)
		says string
	}{
		"none": {func(remote.Store, *catalog.Catalog) {}, "no index yet: imagefs index STORE IMAGE"},
		"gone": {func(s remote.Store, cat *catalog.Catalog) {
			x := putIndex(t, s, cat, "i", "qcow2", index)
			if err := s.Delete(t.Context(), x.Key); err != nil {
				t.Fatal(err)
			}
		}, "is gone"},
		"other bytes": {func(s remote.Store, cat *catalog.Catalog) {
			x := putIndex(t, s, cat, "i", "qcow2", index)
			put(t, s, x.Key, damaged)
		}, "sha256"},
		"other length": {func(s remote.Store, cat *catalog.Catalog) {
			x := putIndex(t, s, cat, "i", "qcow2", index)
			put(t, s, x.Key, damaged[:200])
		}, "200 bytes"},
		"damaged when it was made": {func(s remote.Store, cat *catalog.Catalog) {
			putIndex(t, s, cat, "i", "qcow2", damaged)
		}, "checksum"},
		"far too long": {func(s remote.Store, cat *catalog.Catalog) {
			putIndex(t, s, cat, "i", "qcow2", append(damaged, make([]byte, 1<<20)...))
		}, "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			s := mem.New()
			put(t, s, "i.qcow2", b)
			o, cat := opener(t, s, 0)
			tt.set(s, cat)
			d, err := open(t, o, cat, "i")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.File(t.Context(), v); !errors.Is(err, image.ErrNotShown) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
			if _, err := d.File(t.Context(), format(t, "raw")); err != nil {
				t.Errorf("raw: %v", err)
			}
			// Made anew, it is found without a restart; the same one is remembered.
			putIndex(t, s, cat, "i", "qcow2", index)
			if d, err = open(t, o, cat, "i"); err != nil {
				t.Fatal(err)
			}
			if _, err := d.File(t.Context(), v); err != nil && !strings.HasPrefix(name, "other") {
				t.Errorf("with a new index: %v", err)
			}
		})
	}
}

// TestHiddenReadsNoIndex: whether a view is listed is known without.
func TestHiddenReadsNoIndex(t *testing.T) {
	b, index := encoded(t, "qcow2", "-c")
	s := &failing{Store: mem.New()}
	put(t, s, "i.qcow2", b)
	o, cat := opener(t, s, 0)
	putIndex(t, s, cat, "i", "qcow2", index)
	d, err := open(t, o, cat, "i")
	if err != nil {
		t.Fatal(err)
	}
	im, err := cat.Lookup(t.Context(), "i")
	if err != nil {
		t.Fatal(err)
	}
	s.err = fmt.Errorf("get: %w", remote.ErrUnavailable)
	if o.Hidden(im, im.Disks[0], view(t, "zlib.qcow2")) || !o.Hidden(im, im.Disks[0], view(t, "zstd.qcow2")) {
		t.Error("Hidden disagrees")
	}
	if _, err := d.File(t.Context(), view(t, "zlib.qcow2")); !errors.Is(err, remote.ErrUnavailable) || errors.Is(err, image.ErrNotShown) {
		t.Errorf("of a store that fails: %v", err)
	}
	s.err = nil
	if _, err := d.File(t.Context(), view(t, "zlib.qcow2")); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

// streamed is a ZVHD of n blocks that all refer to those before them, and the
// line of text that each begins with.
func streamed(t *testing.T, n int) (b []byte, lines [][]byte) {
	t.Helper()
	const page, block = 4096, 2 << 20
	head := stored(t, format(t, "zvhd"), codectest.Empty(int64(n)*block))[:page]
	b = bytes.Clone(head)
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	out.WriteString("\x78\x9c")
	text := codectest.Full(int64(n)*500, 5).Soft()
	for i := range n {
		line := make([]byte, 500)
		if _, err := text.ReadAt(t.Context(), line, int64(i)*500); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		copy(line[300:], "a line that each has")
		lines = append(lines, line)
		for _, p := range [][]byte{line, make([]byte, 20000)} {
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		rec := make([]byte, codec.Up(48+int64(out.Len())+4, page))
		copy(rec, "hwstream bg\x00")
		binary.LittleEndian.PutUint32(rec[12:], uint32(out.Len()))
		binary.LittleEndian.PutUint32(rec[16:], uint32(i))
		copy(rec[48:], out.Bytes())
		copy(rec[len(rec)-4:], "end\x00")
		b = append(b, rec...)
		out.Reset()
	}
	return append(b, head...), lines
}

// TestWindowsOfAnIndex: a ZVHD is opened with the windows of its index, and
// without them when they are damaged, which is noted.
func TestWindowsOfAnIndex(t *testing.T) {
	const n = 40
	b, lines := streamed(t, n)
	opened, err := format(t, "zvhd").Open(t.Context(), codectest.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	index := indexOf(t, opened)
	damaged := bytes.Clone(index)
	damaged[20] ^= 1
	for _, tt := range []struct {
		name  string
		index []byte
		note  bool
	}{{"none", nil, false}, {"good", index, false}, {"damaged", damaged, true}} {
		t.Run(tt.name, func(t *testing.T) {
			s := mem.New()
			put(t, s, "i.zvhd", b)
			o, cat := opener(t, s, 0)
			if tt.index != nil {
				putIndex(t, s, cat, "i", "zvhd", tt.index)
			}
			d, err := open(t, o, cat, "i")
			if err != nil {
				t.Fatal(err)
			}
			if noted := strings.Contains(strings.Join(d.Notes, "\n"), "is not used"); noted != tt.note {
				t.Errorf("notes %q", d.Notes)
			}
			f, err := d.File(t.Context(), format(t, "raw"))
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 500)
			if m, err := f.ReadAt(t.Context(), p, (n-1)*2<<20); m < len(p) || !bytes.Equal(p, lines[n-1]) {
				t.Errorf("%v, or other bytes", err)
			}
			if err := d.Possible(view(t, "zlib.qcow2")); !errors.Is(err, image.ErrNotShown) {
				t.Errorf("zlib.qcow2: %v", err)
			}
		})
	}
}
