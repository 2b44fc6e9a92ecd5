package vmdk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"imagefs/codec"
)

// extentLine is one line of a descriptor's extent description.
type extentLine struct {
	access  string
	sectors int64
	kind    string
	name    string
	quoted  bool   // whether the name stands between quotes
	rest    string // what follows the name: the first sector of flat data
}

// descriptor is what a reader needs of the text: the rest, the disk data base
// above all, describes the disk to a hypervisor.
type descriptor struct {
	version    string
	parentCID  string
	parentHint string
	createType string
	extents    []extentLine
}

// parseDescriptor reads the text up to the first NUL.
func parseDescriptor(b []byte) (descriptor, error) {
	var d descriptor
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	text := string(b)
	first, _, _ := strings.Cut(text, "\n")
	switch strings.ToLower(strings.TrimSpace(first)) {
	case "# disk descriptorfile", "# disk descriptor file", "#disk descriptorfile":
	default:
		return d, codec.Corruptf("descriptor begins with %.40q, want %q", first, "# Disk DescriptorFile")
	}
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if isExtent(line) {
			e, err := parseExtent(line)
			if err != nil {
				return d, codec.Corruptf("descriptor line %d, %.80q: %v", n, line, err)
			}
			d.extents = append(d.extents, e)
			continue
		}
		key, val, ok := strings.Cut(line, "=")
		if !ok {
			return d, codec.Corruptf("descriptor line %d is no setting and no extent: %.80q", n, line)
		}
		key = strings.ToLower(strings.TrimSpace(key))
		val = strings.Trim(strings.TrimSpace(val), `"`)
		var to *string
		switch key {
		case "version":
			to = &d.version
		case "parentcid":
			to = &d.parentCID
		case "parentfilenamehint":
			to = &d.parentHint
		case "createtype":
			to = &d.createType
		default:
			continue
		}
		// Readers differ in which of two they believe.
		if seen[key] {
			return d, codec.Corruptf("descriptor line %d sets %s again", n, key)
		}
		seen[key] = true
		*to = val
	}
	return d, nil
}

func isExtent(line string) bool {
	access, _, ok := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	switch strings.ToUpper(access) {
	case "RW", "RDONLY", "NOACCESS":
		return ok
	}
	return false
}

func parseExtent(line string) (e extentLine, err error) {
	text, rest, _ := strings.Cut(line, `"`)
	f := strings.Fields(text)
	if len(f) != 3 {
		return e, fmt.Errorf("%d words before the name, want access, sectors and type", len(f))
	}
	e.access, e.kind = strings.ToUpper(f[0]), strings.ToUpper(f[2])
	if e.sectors, err = strconv.ParseInt(f[1], 10, 64); err != nil || e.sectors < 0 {
		return e, fmt.Errorf("%q is no number of sectors", f[1])
	}
	e.name, e.rest, e.quoted = strings.Cut(rest, `"`)
	e.rest = strings.TrimSpace(e.rest)
	return e, nil
}

// outside says where the data of a createType are that is not read here.
var outside = map[string]string{
	"monolithicFlat":              "its data are in another file",
	"vmfs":                        "its data are in another file",
	"twoGbMaxExtentSparse":        "its data are split over other files",
	"twoGbMaxExtentFlat":          "its data are split over other files",
	"2GbMaxExtentSparse":          "its data are split over other files",
	"2GbMaxExtentFlat":            "its data are split over other files",
	"vmfsSparse":                  "it is a COWD delta of another image",
	"seSparse":                    "its data are in an seSparse delta",
	"vmfsRaw":                     "its data are on a host device",
	"vmfsRawDeviceMap":            "its data are on a host device",
	"vmfsPassthroughRawDeviceMap": "its data are on a host device",
	"vmfsRDM":                     "its data are on a host device",
	"vmfsRDMP":                    "its data are on a host device",
	"fullDevice":                  "its data are on a host device",
	"partitionedDevice":           "its data are on a host device",
	"custom":                      "its data are in files of several kinds",
	"vsanSparse":                  "it is a delta of another image",
}

const flatten = "flatten it into one file with qemu-img convert where it is trusted"

// check refuses by name all that leads out of the file.
func (d *descriptor) check() error {
	if why, ok := outside[d.createType]; ok {
		return codec.Unsupportedf("createType %q: %s%s; %s", d.createType, why, d.names(), flatten)
	}
	switch {
	case d.createType == "":
		return codec.Corruptf("descriptor without a createType")
	case d.createType != "monolithicSparse" && d.createType != "streamOptimized":
		return codec.Unsupportedf("unknown createType %.80q; %s", d.createType, flatten)
	}
	if err := d.alone(); err != nil {
		return err
	}
	if n := len(d.extents); n > 1 {
		return codec.Unsupportedf("%d extents: its data are split%s; %s", n, d.names(), flatten)
	}
	e := d.extents[0]
	switch {
	case e.kind != "SPARSE":
		return codec.Unsupportedf("extent of type %.20q%s: its data are outside the file; %s", e.kind, d.names(), flatten)
	case e.access == "NOACCESS":
		return codec.Unsupportedf("extent %.200q with access NOACCESS", e.name)
	case strings.ContainsAny(e.name, `/\`) || e.name == "..":
		return codec.Unsupportedf("extent name %.200q leads to another place", e.name)
	}
	return nil
}

// alone refuses a version that is not known and a delta of another image, and
// wants an extent.
func (d *descriptor) alone() error {
	if d.version != "1" && d.version != "2" && d.version != "3" {
		return codec.Unsupportedf("descriptor version %.20q, known are 1 to 3", d.version)
	}
	if cid, err := strconv.ParseUint(d.parentCID, 16, 32); d.parentCID != "" && err != nil {
		return codec.Corruptf("parentCID %.40q is no number of 8 hexadecimal digits", d.parentCID)
	} else if d.parentCID != "" && cid != 0xffffffff || d.parentHint != "" {
		return codec.Unsupportedf("delta of another image (parentCID %q, parentFileNameHint %.200q); %s", d.parentCID, d.parentHint, flatten)
	}
	if len(d.extents) == 0 {
		return codec.Corruptf("descriptor without an extent line")
	}
	return nil
}

// names quotes the first names in the extent lines.
func (d *descriptor) names() string {
	var b strings.Builder
	for i, e := range d.extents {
		if i == 3 {
			fmt.Fprintf(&b, " and %d more", len(d.extents)-i)
			break
		}
		fmt.Fprintf(&b, ", %.200q", e.name)
	}
	return strings.Replace(b.String(), ",", ":", 1)
}

const descriptorSectors = 20

// newDescriptor writes the text for a disk of so many sectors, padded to its
// sectors. view is the name of the flavour: two files with one UUID cannot be
// registered with VirtualBox at once, and libvmdk opens the file by the name in
// its text.
func newDescriptor(view, createType string, sectors int64, f codec.Facts) ([]byte, error) {
	content := f.VersionUUID("vmdk", "content")
	// All ones means "no parent", all ones less one is taken too.
	if binary.BigEndian.Uint32(content[12:]) >= 0xfffffffe {
		content[15] = 0
	}
	id := hex.EncodeToString(content[:])
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%s\nparentCID=ffffffff\ncreateType=\"%s\"\n\n", id[24:], createType)
	fmt.Fprintf(&b, "# Extent description\nRW %d SPARSE \"%s.%s\"\n\n", sectors, plain(f.Name), view)
	fmt.Fprintf(&b, "# The Disk Data Base\n#DDB\n\n")
	fmt.Fprintf(&b, "ddb.adapterType = \"lsilogic\"\n")
	fmt.Fprintf(&b, "ddb.geometry.cylinders = \"%d\"\n", max(1, sectors/(255*63)))
	fmt.Fprintf(&b, "ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n")
	fmt.Fprintf(&b, "ddb.longContentID = \"%s\"\n", id)
	fmt.Fprintf(&b, "ddb.uuid.image = \"%s\"\n", uuidText(f.UUID(view, "image")))
	fmt.Fprintf(&b, "ddb.uuid.modification = \"%s\"\n", uuidText(f.VersionUUID(view, "modification")))
	fmt.Fprintf(&b, "ddb.uuid.parent = \"%s\"\n", uuidText([16]byte{}))
	fmt.Fprintf(&b, "ddb.uuid.parentmodification = \"%s\"\n", uuidText([16]byte{}))
	fmt.Fprintf(&b, "ddb.virtualHWVersion = \"10\"\n")
	const room = descriptorSectors * sector
	if b.Len() >= room {
		return nil, fmt.Errorf("descriptor of %d bytes, room is for %d: the name has %d", b.Len(), room, len(f.Name))
	}
	return append(b.Bytes(), make([]byte, room-b.Len())...), nil
}

// plain replaces what would end the name or the line, or be a path.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || strings.ContainsRune(`"/\`, r) {
			return '_'
		}
		return r
	}, name)
}

func uuidText(u [16]byte) string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
