package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"
)

const (
	// headerSize is the length of a header, which keeps the data page-aligned.
	headerSize = 4096
	// perChunk is how many units a chunk has, and how many slots its file.
	perChunk = Chunk / Unit
)

// unitsOf is how many units n bytes are.
func unitsOf(n int) int { return (n + Unit - 1) / Unit }

// A chunk's file is a header and then slots of Unit bytes. Units take the slots in
// the order of their coming, so that the length of the file says what it takes, on
// any file system. Only the last unit of an object is shorter than its slot.
//
// Header, integers little-endian:
//
//	0     magic, which ends in the version of the layout
//	8     sum of the identity
//	40    offset of the chunk
//	48    for each unit one byte: 0, it is not here; else its slot, from 1 on
//	64    for each unit the CRC-32C of its bytes; 0 if it is not here
//	128   zeros
//	4092  CRC-32C of the bytes before
const magic = "ifsblk\x00\x02"

const (
	placesAt = 48
	sumsAt   = placesAt + perChunk
	endAt    = headerSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header says which units a chunk's file holds, and where.
type header struct {
	sum   [sha256.Size]byte // of the identity
	at    int64             // offset of the chunk
	place [perChunk]uint8   // slot + 1 of a unit; 0 if it is not here
	crc   [perChunk]uint32
}

// mismatch says in what a file is not what was looked for.
type mismatch string

func (m mismatch) Error() string { return string(m) }

func isMismatch(err error) bool {
	var m mismatch
	return errors.As(err, &m)
}

// damaged reports whether an error says that something is lost, and not only cannot
// be had now.
func damaged(err error) bool { return isMismatch(err) || errors.Is(err, syscall.EIO) }

// errTorn is of a header that is damaged, or that was read while it was written.
const errTorn = mismatch("another checksum of the header")

// encode writes a header into b, which has headerSize bytes.
func (h *header) encode(b []byte) {
	clear(b)
	copy(b, magic)
	copy(b[8:], h.sum[:])
	binary.LittleEndian.PutUint64(b[40:], uint64(h.at))
	copy(b[placesAt:], h.place[:])
	for i, crc := range h.crc {
		binary.LittleEndian.PutUint32(b[sumsAt+4*i:], crc)
	}
	binary.LittleEndian.PutUint32(b[endAt:], crc32.Checksum(b[:endAt], castagnoli))
}

// decode reads b, a header, into one whose sum and offset say what is looked for.
func (h *header) decode(b []byte) error {
	switch {
	case binary.LittleEndian.Uint32(b[endAt:]) != crc32.Checksum(b[:endAt], castagnoli):
		return errTorn
	case string(b[:8]) != magic:
		return mismatch("another layout")
	case !bytes.Equal(b[8:40], h.sum[:]) || binary.LittleEndian.Uint64(b[40:]) != uint64(h.at):
		return mismatch("another identity")
	}
	copy(h.place[:], b[placesAt:])
	for i := range h.crc {
		if h.place[i] > perChunk {
			return mismatch(fmt.Sprintf("unit %d in slot %d", i, h.place[i]-1))
		}
		h.crc[i] = binary.LittleEndian.Uint32(b[sumsAt+4*i:])
	}
	return nil
}

// empty reports whether no unit is here.
func (h *header) empty() bool { return h.place == [perChunk]uint8{} }

// run counts the units from first on that are of one status, up to limit, and
// reports whether that is kept.
func (h *header) run(first, limit int) (n int, kept bool) {
	kept = h.place[first] != 0
	for n = 1; n < limit && (h.place[first+n] != 0) == kept; {
		n++
	}
	return n, kept
}

// add gives a unit a free slot.
func (h *header) add(unit int, crc uint32) {
	var taken [perChunk + 1]bool
	for i, place := range h.place {
		taken[place] = taken[place] || i != unit
	}
	slot := uint8(1)
	for taken[slot] {
		slot++
	}
	h.place[unit], h.crc[unit] = slot, crc
}

// forget takes a unit out.
func (h *header) forget(unit int) { h.place[unit], h.crc[unit] = 0, 0 }

// each calls do for the units in set, a bit each, in the order of their slots:
// neighbours that also are so in the file in one call. It ends with the first error.
func (h *header) each(set uint, do func(unit, n int, off int64) error) error {
	var in [perChunk]int // unit + 1 in a slot
	for i, place := range h.place {
		if set>>i&1 != 0 && place != 0 {
			in[place-1] = i + 1
		}
	}
	for slot, n := 0, 0; slot < perChunk; slot += n {
		n = 1
		if in[slot] == 0 {
			continue
		}
		for slot+n < perChunk && in[slot+n] == in[slot]+n {
			n++
		}
		if err := do(in[slot]-1, n, headerSize+int64(slot)*Unit); err != nil {
			return err
		}
	}
	return nil
}

// part is the n units from unit on of p, which begins with unit first.
func part(p []byte, first, unit, n int) []byte {
	from := (unit - first) * Unit
	return p[from:min(from+n*Unit, len(p))]
}

// setOf is the set of n units from first on.
func setOf(first, n int) uint { return (1<<n - 1) << first }

// openChunk opens a chunk's file and reads its header into h, whose sum and offset
// are given. The file is open if err is nil.
func (c *Cache) openChunk(path string, flag int, h *header) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var b [headerSize]byte
	if err = full(f, b[:], 0); err == nil {
		err = h.decode(b[:])
	}
	if errors.Is(err, errTorn) { // it may just be written
		c.heading.Lock()
		if err = full(f, b[:], 0); err == nil {
			err = h.decode(b[:])
		}
		c.heading.Unlock()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// full fills p from off.
func full(f *os.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	} else if err == io.EOF {
		return mismatch("cut short")
	}
	return err
}

// read fills p with units from first on, all of them kept, and returns how many
// bytes of it are right. The error is of what is behind these.
func (h *header) read(f *os.File, p []byte, first int) (n int, err error) {
	units := unitsOf(len(p))
	err = h.each(setOf(first, units), func(unit, n int, off int64) error {
		return full(f, part(p, first, unit, n), off)
	})
	if err != nil {
		if units == 1 {
			return 0, err
		}
		return h.read(f, p[:Unit], first) // at least what comes first
	}
	for i := range units {
		b := part(p, first, first+i, 1)
		if crc32.Checksum(b, castagnoli) != h.crc[first+i] {
			return n, mismatch(fmt.Sprintf("another checksum of unit %d", first+i))
		}
		n += len(b)
	}
	return n, nil
}
