package tarball

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

var created = time.Date(2021, 3, 4, 5, 6, 7, 890, time.UTC)

// written is an archive of both dialects' writer.
func written(t testing.TB, d Dialect, record int64) *codec.File {
	t.Helper()
	w := NewWriter(d, created)
	for _, m := range []struct {
		name string
		b    []byte
	}{{"a.ovf", []byte("hello")}, {"empty", nil}, {"whole", make([]byte, 1024)}, {strings.Repeat("n", 100), []byte{1}}} {
		if err := w.Bytes(m.name, m.b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Disk("disk", codectest.Example()); err != nil {
		t.Fatal(err)
	}
	return w.Close(record)
}

// TestWritten: what is written is read again, here and by the standard library.
func TestWritten(t *testing.T) {
	for _, d := range []Dialect{USTAR, GNU} {
		f := written(t, d, 512)
		want := int64(1024 + 512 + 1536 + 1024 + 512 + 1024)
		if want += codectest.Example().Size(); f.Size() != want {
			t.Errorf("%q: %d bytes, want %d", d, f.Size(), want)
		}
		members, err := Read(context.Background(), f, 5)
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(reading(f))
		for _, m := range members {
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if h.Name != m.Name || h.Size != m.Size || !h.ModTime.Equal(m.Time) || !m.Time.Equal(created.Truncate(time.Second)) || h.Mode != 0o644 {
				t.Errorf("%q: member %+v, the standard library reads %+v", d, m, h)
			}
			if h.Format != map[Dialect]tar.Format{USTAR: tar.FormatUSTAR, GNU: tar.FormatGNU}[d] {
				t.Errorf("%q: %s", d, h.Format)
			}
		}
		if _, err := r.Next(); err != io.EOF || len(members) != 5 {
			t.Errorf("%q: %d members, then %v", d, len(members), err)
		}
		b, err := codectest.ReadAll(Find(members, "a.ovf").Open(f))
		if string(b) != "hello" || err != nil {
			t.Errorf("%q: %q, %v", d, b, err)
		}
		if Find(members, "none") != nil {
			t.Error("found what is not there")
		}
		if _, err := Read(context.Background(), f, 4); !errors.Is(err, codec.ErrUnsupported) {
			t.Errorf("five members where four are allowed: %v", err)
		}
	}
	if n := written(t, GNU, 10240).Size(); n%10240 != 0 {
		t.Errorf("%d bytes are no record", n)
	}
}

func reading(f codec.Source) io.Reader {
	return io.NewSectionReader(readerAt{f}, 0, f.Size())
}

type readerAt struct{ codec.Source }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.Source.ReadAt(context.Background(), p, off)
}

// TestLarge: sizes of 8 GiB and more, and what does not fit at all.
func TestLarge(t *testing.T) {
	for _, size := range []int64{1<<33 - 1, 1 << 33, 1 << 50} {
		w := NewWriter(USTAR, time.Time{})
		if err := w.Disk("large", codectest.Empty(size)); err != nil {
			t.Fatal(err)
		}
		members, err := Read(context.Background(), w.Close(512), 1)
		if err != nil || members[0].Size != size || !members[0].Time.IsZero() {
			t.Errorf("%d: %+v, %v", size, members, err)
		}
	}
	w := NewWriter(USTAR, time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC))
	if err := w.Disk("a", codectest.Empty(codec.MaxSize/2)); err != nil {
		t.Fatal(err)
	}
	if err := w.Disk("b", codectest.Empty(codec.MaxSize/2)); !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("two halves of the largest file and a header: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", `a\b`, "a\n", "\xff", strings.Repeat("n", 101), "/a", "a\x00"} {
		if err := w.Bytes(name, nil); err == nil {
			t.Errorf("name %q taken", name)
		}
	}
}

// raw makes a header with valid checksum, and its padded body.
func raw(kind byte, name string, size int64, body []byte, change func(b []byte)) []byte {
	w := NewWriter(GNU, created)
	b := w.header(name, size)
	b[156] = kind
	if change != nil {
		change(b)
	}
	copy(b[148:156], strings.Repeat(" ", 8))
	sum, _ := sums(b)
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	b = append(b, body...)
	return append(b, make([]byte, codec.Up(int64(len(body)), sector)-int64(len(body)))...)
}

func plain(name, body string) []byte { return raw('0', name, int64(len(body)), []byte(body), nil) }

func ext(kind byte, body string) []byte {
	return raw(kind, "././@x", int64(len(body)), []byte(body), nil)
}

func record(key, val string) string {
	s := " " + key + "=" + val + "\n"
	for n := len(s); ; n++ {
		if r := fmt.Sprint(n) + s; len(r) == n {
			return r
		}
	}
}

var eof = make([]byte, 1024)

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestRead: long names, sizes and times of GNU and pax headers.
func TestRead(t *testing.T) {
	long := strings.Repeat("long-", 30)
	for what, c := range map[string]struct {
		b    []byte
		want string
	}{
		"plain":            {join(plain("a", "xyz"), eof), "a 3"},
		"old kind":         {join(raw(0, "a", 3, []byte("xyz"), nil), eof), "a 3"},
		"dot":              {join(plain("./a", "xyz"), eof), "a 3"},
		"gnu long name":    {join(ext('L', long+"\x00"), plain("long-", "xyz"), eof), long + " 3"},
		"pax path":         {join(ext('x', record("path", long)+record("comment", "c")), plain("long-", "xyz"), eof), long + " 3"},
		"pax size":         {join(ext('x', record("size", "3")), raw('0', "a", 0, []byte("xyz"), nil), plain("b", ""), eof), "a 3 b 0"},
		"pax time":         {join(ext('x', record("mtime", "12.5")), plain("a", ""), eof), "a 0"},
		"global comment":   {join(ext('g', record("comment", "c")), plain("a", ""), eof), "a 0"},
		"one zero sector":  {join(plain("a", ""), eof[:512]), "a 0"},
		"spaces in number": {join(raw('0', "a", 3, []byte("xyz"), func(b []byte) { copy(b[124:], "          3 ") }), eof), "a 3"},
		"base 256":         {join(raw('0', "a", 3, []byte("xyz"), func(b []byte) { copy(b[124:], "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03") }), eof), "a 3"},
		"odd tail":         {join(plain("a", ""), eof, make([]byte, 100)), "a 0"},
		"empty":            {eof, ""},
		"wrong time":       {join(raw('0', "a", 0, nil, func(b []byte) { copy(b[136:], "zz") }), eof), "a 0"},
	} {
		members, err := Read(context.Background(), codectest.Bytes(c.b), 16)
		var got []string
		for _, m := range members {
			got = append(got, fmt.Sprint(m.Name, " ", m.Size))
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, %v, want %q", what, got, err, c.want)
		}
	}
}

// TestRefused: what is no list of plain files.
func TestRefused(t *testing.T) {
	for what, c := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"path":              {join(plain("a/b", ""), eof), codec.ErrUnsupported, "a/b"},
		"absolute":          {join(plain("/a", ""), eof), codec.ErrUnsupported, "/a"},
		"up":                {join(plain("..", ""), eof), codec.ErrUnsupported, ".."},
		"up in pax":         {join(ext('x', record("path", "../a")), plain("a", ""), eof), codec.ErrUnsupported, "../a"},
		"up in long":        {join(ext('L', "../a\x00"), plain("a", ""), eof), codec.ErrUnsupported, "../a"},
		"backslash":         {join(plain(`a\b`, ""), eof), codec.ErrUnsupported, `a\\b`},
		"prefix":            {join(raw('0', "a", 0, nil, func(b []byte) { copy(b[257:], USTAR); copy(b[345:], "p") }), eof), codec.ErrUnsupported, "p/a"},
		"hard link":         {join(raw('1', "a", 0, nil, nil), eof), codec.ErrUnsupported, "hard link"},
		"symbolic link":     {join(raw('2', "a", 0, nil, nil), eof), codec.ErrUnsupported, "symbolic link"},
		"long link":         {join(ext('K', "a\x00"), plain("a", ""), eof), codec.ErrUnsupported, "link"},
		"pax link":          {join(ext('x', record("linkpath", "a")), plain("a", ""), eof), codec.ErrUnsupported, "link"},
		"character device":  {join(raw('3', "a", 0, nil, nil), eof), codec.ErrUnsupported, "device"},
		"block device":      {join(raw('4', "a", 0, nil, nil), eof), codec.ErrUnsupported, "device"},
		"folder":            {join(raw('5', "a/", 0, nil, nil), eof), codec.ErrUnsupported, "folder"},
		"pipe":              {join(raw('6', "a", 0, nil, nil), eof), codec.ErrUnsupported, "pipe"},
		"sparse":            {join(raw('S', "a", 0, nil, nil), eof), codec.ErrUnsupported, "sparse"},
		"pax sparse":        {join(ext('x', record("GNU.sparse.major", "1")), plain("a", ""), eof), codec.ErrUnsupported, "sparse"},
		"volume":            {join(raw('M', "a", 0, nil, nil), eof), codec.ErrUnsupported, "another archive"},
		"unknown":           {join(raw('Z', "a", 0, nil, nil), eof), codec.ErrUnsupported, "unknown type"},
		"twice":             {join(plain("a", ""), plain("A", ""), eof), codec.ErrCorrupt, "one name"},
		"two long names":    {join(ext('L', "a\x00"), ext('L', "b\x00"), plain("a", ""), eof), codec.ErrCorrupt, "second long name"},
		"long and path":     {join(ext('L', "a\x00"), ext('x', record("path", "b")), plain("a", ""), eof), codec.ErrCorrupt, "two long names"},
		"empty long":        {join(ext('L', ""), plain("a", ""), eof), codec.ErrCorrupt, "empty"},
		"path twice":        {join(ext('x', record("path", "a")+record("path", "b")), plain("a", ""), eof), codec.ErrCorrupt, "already"},
		"size twice":        {join(ext('x', record("size", "0")), ext('x', record("size", "0")), plain("a", ""), eof), codec.ErrCorrupt, "already"},
		"negative pax size": {join(ext('x', record("size", "-1")), plain("a", ""), eof), codec.ErrCorrupt, "no number"},
		"pax length":        {join(ext('x', "99 path=a\n"), plain("a", ""), eof), codec.ErrCorrupt, "length"},
		"pax length 0":      {join(ext('x', "0 path=a\n"), plain("a", ""), eof), codec.ErrCorrupt, "length"},
		"pax no value":      {join(ext('x', "8 path\n\n"), plain("a", ""), eof), codec.ErrCorrupt, "no value"},
		"global path":       {join(ext('g', record("path", "a")), plain("a", ""), eof), codec.ErrUnsupported, "all members"},
		"global size":       {join(ext('g', record("size", "0")), plain("a", ""), eof), codec.ErrUnsupported, "all members"},
		"large pax":         {join(raw('x', "x", 1<<20, make([]byte, 1<<20), nil), plain("a", ""), eof), codec.ErrUnsupported, "up to"},
		"large long name":   {join(raw('L', "x", 1<<20, make([]byte, 1<<20), nil), plain("a", ""), eof), codec.ErrUnsupported, "up to"},
		"many headers":      {join(bytes.Repeat(ext('g', record("comment", "c")), 20), plain("a", ""), eof), codec.ErrUnsupported, "headers before"},
		"past the end":      {join(raw('0', "a", 5000, []byte("xyz"), nil), eof), codec.ErrCorrupt, "5000 bytes: past the end of the file (2048 bytes)"},
		"huge":              {join(raw('0', "a", 1<<63-1, []byte("xyz"), nil), eof), codec.ErrCorrupt, "past the end"},
		"past 63 bits":      {join(raw('0', "a", 0, nil, func(b []byte) { copy(b[124:], strings.Repeat("\x80", 12)) }), eof), codec.ErrCorrupt, "63 bits"},
		"negative":          {join(raw('0', "a", 0, nil, func(b []byte) { copy(b[124:], strings.Repeat("\xff", 12)) }), eof), codec.ErrCorrupt, "negative"},
		"no octal":          {join(raw('0', "a", 0, nil, func(b []byte) { copy(b[124:], "000009") }), eof), codec.ErrCorrupt, "octal"},
		"checksum":          {join(bytes.Replace(plain("a", ""), []byte("a"), []byte("b"), 1), eof), codec.ErrCorrupt, "checksum"},
		"magic":             {join(raw('0', "a", 0, nil, func(b []byte) { clear(b[257:265]) }), eof), codec.ErrCorrupt, "magic"},
		"no end":            {plain("a", ""), codec.ErrCorrupt, "archive of 512 bytes: a header or the zeros of the end should lie at 0x200: truncated, want 1536"},
		"half a header":     {join(plain("a", ""), plain("b", "")[:100]), codec.ErrCorrupt, "truncated"},
		"no member":         {join(ext('L', "a\x00"), eof), codec.ErrCorrupt, "should be"},
		"behind the end":    {join(plain("a", ""), eof, []byte("x")), codec.ErrCorrupt, "behind the end"},
		"lone zero sector":  {join(plain("a", ""), eof[:512], plain("b", ""), eof), codec.ErrCorrupt, "behind the end"},
		"long tail":         {join(plain("a", ""), make([]byte, 2<<20)), codec.ErrUnsupported, "behind the end"},
		"control character": {join(plain("a\x01", ""), eof), codec.ErrUnsupported, "plain text"},
		"nothing":           {nil, codec.ErrCorrupt, "truncated"},
	} {
		_, err := Read(context.Background(), codectest.Bytes(c.b), 16)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: %v, want %v and %q", what, err, c.want, c.text)
		}
	}
}

// TestOtherWriters: archives of the tar programs, in every dialect.
func TestOtherWriters(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("long-", 30)
	names := []string{"a", "b.bin", long}
	for i, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), bytes.Repeat([]byte{byte(i)}, 700*i), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "out.tar")
	for _, c := range []struct {
		tool, format string
		n            int // names it holds
	}{{"tar", "gnu", 3}, {"tar", "posix", 3}, {"tar", "pax", 3}, {"tar", "ustar", 2}, {"bsdtar", "gnutar", 3}, {"bsdtar", "pax", 3}, {"bsdtar", "ustar", 2}} {
		t.Run(c.tool+" "+c.format, func(t *testing.T) {
			codectest.Exec(t, c.tool, append([]string{"-C", dir, "--format", c.format, "-cf", out}, names[:c.n]...)...)
			src := codectest.File(t, out)
			members, err := Read(context.Background(), src, 3)
			if err != nil || len(members) != c.n {
				t.Fatalf("%v, %v", members, err)
			}
			for i, m := range members {
				b, err := codectest.ReadAll(m.Open(src))
				if m.Name != names[i] || err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, 700*i)) || m.Time.IsZero() {
					t.Errorf("%+v: %v", m, err)
				}
			}
		})
	}
}

// FuzzRead reads archives of any origin: members lie inside, and apart.
func FuzzRead(f *testing.F) {
	f.Add(join(plain("a", "xyz"), eof))
	f.Add(join(ext('L', "long\x00"), plain("a", "xyz"), ext('x', record("path", "b")+record("size", "3")), plain("c", "xyz"), eof))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := codectest.Bounded(codectest.Bytes(b), 600, int64(len(b))+1<<20)
		members, err := Read(context.Background(), src, 16)
		if err != nil {
			if !codectest.Clean(err) {
				t.Errorf("%v is no clean refusal", err)
			}
			return
		}
		end := int64(0)
		for _, m := range members {
			if m.Off < end+sector || m.Size < 0 || m.Size > int64(len(b))-m.Off || checkName(m.Name) != nil {
				t.Errorf("%+v after %#x in %d bytes", m, end, len(b))
			}
			end = m.Off + m.Size
		}
	})
}
