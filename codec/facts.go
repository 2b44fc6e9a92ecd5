package codec

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// Facts is all that a layout may depend on besides the disk itself.
type Facts struct {
	ID      [16]byte  // of the image
	Number  int       // of the disk in its image, from 0
	Content [32]byte  // names the disk's content version
	Name    string    // base name of the file without its suffix, such as "disk0"
	Created time.Time // of the image; zero when the catalog does not know
}

// idTag separates identities derived here from any other use of the hash.
const idTag = "imagefs identity 1"

// UUID derives the identity for a purpose in a format, such as "vdi" and
// "create": stable, and different per image, disk, format and purpose. It has
// the shape of RFC 9562 version 8, in plain byte order.
func (f Facts) UUID(format, purpose string) [16]byte {
	return f.derive(format, purpose, nil)
}

// VersionUUID is UUID for identities of a modification: it changes with the
// content too, so that a differencing child of older content is recognised.
func (f Facts) VersionUUID(format, purpose string) [16]byte {
	return f.derive(format, purpose, f.Content[:])
}

func (f Facts) derive(format, purpose string, content []byte) (u [16]byte) {
	h := sha256.New()
	put := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	put([]byte(idTag))
	put(f.ID[:])
	var num [8]byte
	binary.BigEndian.PutUint64(num[:], uint64(f.Number))
	put(num[:])
	put([]byte(format))
	put([]byte(purpose))
	put(content)
	copy(u[:], h.Sum(nil))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

// MixedEndian returns u in the byte order of Microsoft structures: the first
// three fields little-endian. VDI and VHDX hold identities so.
func MixedEndian(u [16]byte) [16]byte {
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	return u
}

// epochVHD is 2000-01-01T00:00:00Z, where VHD time stamps begin.
const epochVHD = 946684800

// VHDTime returns t in seconds since 2000, clamped to what 32 bits hold.
func VHDTime(t time.Time) uint32 {
	s := t.Unix() - epochVHD
	return uint32(min(max(s, 0), 1<<32-1))
}
