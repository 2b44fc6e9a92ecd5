package tarball

import (
	"encoding/binary"
	"fmt"
	"time"

	"imagefs/codec"
)

// Dialect is the magic that headers are written with.
type Dialect string

// The dialects that are written.
const (
	USTAR Dialect = "ustar\x0000"
	GNU   Dialect = "ustar  \x00"
)

const (
	sector  = 512
	maxName = 100
	// maxOctal is the first number that 11 octal digits do not hold: 8 GiB.
	maxOctal = 1 << 33
)

// Writer lays members out, in order, as a [codec.File]. No byte of them is read.
type Writer struct {
	dialect Dialect
	mtime   int64
	file    *codec.File
}

// NewWriter is a Writer of an archive whose members all have the time t. What
// lies before 1970, and the zero time, is 1970.
func NewWriter(d Dialect, t time.Time) *Writer {
	return &Writer{dialect: d, mtime: min(max(t.Unix(), 0), maxOctal-1), file: new(codec.File)}
}

// Bytes adds a member that holds b, which the file keeps. The name is bounded
// as by [Writer.Disk].
func (w *Writer) Bytes(name string, b []byte) error {
	if err := w.begin(name, int64(len(b))); err != nil {
		return err
	}
	w.file.Literal(b)
	w.pad()
	return nil
}

// Disk adds a member that holds the bytes of d. A name is of 1 to 100 bytes and
// no path. The error is ErrTooLarge where the archive would exceed
// [codec.MaxSize].
func (w *Writer) Disk(name string, d codec.Disk) error {
	if err := w.begin(name, d.Size()); err != nil {
		return err
	}
	w.file.Guest(d, 0, d.Size())
	w.pad()
	return nil
}

func (w *Writer) begin(name string, size int64) error {
	if err := checkName(name); err != nil {
		return err
	}
	if len(name) > maxName {
		return fmt.Errorf("name of a member, %q: longer than %d bytes", name, maxName)
	}
	const tail = 1 << 20 // the header, two paddings and the end
	if size > codec.MaxSize-tail-w.file.Size() {
		return fmt.Errorf("%w: member %q of %d bytes ends an archive past %d", codec.ErrTooLarge, name, size, int64(codec.MaxSize))
	}
	w.file.Literal(w.header(name, size))
	return nil
}

func (w *Writer) pad() {
	w.file.ZeroTo(codec.Up(w.file.Size(), sector))
}

// Close ends the archive with two sectors of zeros, and more up to a multiple of
// record bytes, and returns it.
func (w *Writer) Close(record int64) *codec.File {
	w.file.ZeroTo(codec.Up(w.file.Size()+2*sector, record))
	return w.file
}

// header is that of a regular file with mode 0644, of nobody by name.
func (w *Writer) header(name string, size int64) []byte {
	b := make([]byte, sector)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	putNumber(b[124:136], size)
	putNumber(b[136:148], w.mtime)
	b[156] = '0'
	copy(b[257:], w.dialect)
	if w.dialect == USTAR { // GNU leaves the device numbers empty
		copy(b[329:], "0000000\x00")
		copy(b[337:], "0000000\x00")
	}
	unsigned, _ := sums(b)
	copy(b[148:], fmt.Sprintf("%06o\x00 ", unsigned))
	return b
}

// putNumber puts v into a field of 12 bytes.
func putNumber(b []byte, v int64) {
	if v < maxOctal {
		copy(b, fmt.Sprintf("%011o\x00", v))
		return
	}
	b[0] = 0x80
	binary.BigEndian.PutUint64(b[4:], uint64(v))
}

// sums are the checksums of a header. Old writers added signed bytes.
func sums(b []byte) (unsigned, signed int64) {
	for i, c := range b[:sector] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return unsigned, signed
}
