package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"imagefs/codec"
)

// maxPieces bounds the extents of a descriptor: 8 TiB in pieces of 2 GiB.
const maxPieces = 4096

// maxLeftover is how many bytes may follow the NUL that ends a text. QEMU writes
// a shorter CID over a longer one, and leaves the old end of the text behind.
const maxLeftover = 16

// maxPieceName is the longest name of a file that systems have, in bytes.
const maxPieceName = 255

// split says which types of extent a createType has whose data are in other
// files. ZERO stands for zeros and is in no file.
var split = map[string][]string{
	"monolithicFlat":       {"FLAT", "ZERO"},
	"twoGbMaxExtentFlat":   {"FLAT", "ZERO"},
	"2GbMaxExtentFlat":     {"FLAT", "ZERO"},
	"twoGbMaxExtentSparse": {"SPARSE", "ZERO"},
	"2GbMaxExtentSparse":   {"SPARSE", "ZERO"},
	"vmfs":                 {"VMFS", "FLAT", "ZERO"},
	"custom":               {"FLAT", "SPARSE", "VMFS", "ZERO"},
}

// Pieces are the extents of a disk that a descriptor alone describes: which
// files, in which order. It opens none of them: the caller has them, under the
// plain names of the descriptor, or the disk is not read.
type Pieces struct {
	pieces []piece
	size   int64 // of the disk, bytes
}

// piece is one extent.
type piece struct {
	extentLine
	first int64 // sector of the file that flat data begin at
}

// ParsePieces reads a descriptor that stands in a file of its own. It refuses
// what needs more than files beside it: a parent, a device, a name that leads
// to another place. Errors are of the three kinds of package codec, or the
// source's own.
func ParsePieces(ctx context.Context, src codec.Source) (*Pieces, error) {
	p, err := parsePieces(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("read vmdk descriptor: %w", err)
	}
	return p, nil
}

func parsePieces(ctx context.Context, src codec.Source) (*Pieces, error) {
	head, tail, err := codec.Ends(ctx, src)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(codec.Signatures(head, tail), codec.VMDKDescriptor) {
		return nil, fmt.Errorf("%w: no VMDK descriptor", codec.ErrFormat)
	}
	const most = maxDescriptor * sector
	if src.Size() > most {
		return nil, codec.Corruptf("descriptor of %d bytes, want at most %d", src.Size(), most)
	}
	b := make([]byte, src.Size())
	if err := codec.ReadFull(ctx, src, b, 0, "descriptor"); err != nil {
		return nil, err
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		if rest := bytes.TrimRight(b[i+1:], "\x00"); len(rest) > maxLeftover {
			return nil, codec.Corruptf("descriptor with a NUL at %#x and %d bytes behind it", i, len(rest))
		}
	}
	d, err := parseDescriptor(b)
	if err != nil {
		return nil, err
	}
	return d.pieces()
}

// pieces checks all that the text says of the extents.
func (d *descriptor) pieces() (*Pieces, error) {
	kinds, ok := split[d.createType]
	if !ok {
		if err := d.check(); err != nil {
			return nil, err
		}
		return nil, codec.Unsupportedf("descriptor of createType %q without the image that it belongs in", d.createType)
	}
	if err := d.alone(); err != nil {
		return nil, err
	}
	if n := len(d.extents); n > maxPieces {
		return nil, codec.Unsupportedf("descriptor of %d extents, at most %d are read", n, maxPieces)
	}
	p := new(Pieces)
	seen := map[string]bool{}
	for i, e := range d.extents {
		x, err := e.piece(kinds)
		if err != nil {
			return nil, fmt.Errorf("extent %d of createType %q: %w", i, d.createType, err)
		}
		if e.kind != "ZERO" && seen[e.name] {
			return nil, codec.Unsupportedf("extent %d: the name %.200q is there twice", i, e.name)
		}
		seen[e.name] = true
		if e.sectors > (codec.MaxSize-p.size)/sector {
			return nil, codec.Corruptf("extent %d of %d sectors: the disk is larger than any", i, e.sectors)
		}
		p.size += e.sectors * sector
		p.pieces = append(p.pieces, x)
	}
	return p, nil
}

// piece checks the line by itself.
func (e extentLine) piece(kinds []string) (piece, error) {
	x := piece{extentLine: e}
	switch {
	case !slices.Contains(kinds, e.kind):
		return x, codec.Unsupportedf("type %.20q of %.200q, want one of %s; %s", e.kind, e.name, strings.Join(kinds, ", "), flatten)
	case e.access == "NOACCESS":
		return x, codec.Unsupportedf("access NOACCESS to %.200q", e.name)
	case e.sectors == 0:
		return x, codec.Corruptf("%.200q of 0 sectors", e.name)
	case e.kind == "ZERO" && (e.quoted || e.name != "" || e.rest != ""):
		return x, codec.Corruptf("type ZERO with the name %.200q", e.name)
	case e.kind == "ZERO":
		return x, nil
	case !e.quoted:
		return x, codec.Corruptf("name %.200q without quotes around it", e.name)
	}
	if err := checkName(e.name); err != nil {
		return x, err
	}
	if e.rest == "" && e.kind != "FLAT" {
		return x, nil
	}
	var err error
	if x.first, err = strconv.ParseInt(e.rest, 10, 64); err != nil || x.first < 0 || x.first > codec.MaxSize/sector {
		return x, codec.Corruptf("%q behind the name %.200q is no sector to begin at", e.rest, e.name)
	}
	if e.kind == "SPARSE" && x.first != 0 {
		return x, codec.Unsupportedf("sparse extent %.200q that begins at sector %d of its file, only 0 is read", e.name, x.first)
	}
	return x, nil
}

// checkName holds a name to that of a file beside the descriptor. Nothing is
// opened by it; a name of another kind is meant for a reader that would.
func checkName(name string) error {
	drive := len(name) >= 2 && name[1] == ':'
	switch {
	case name == "":
		return codec.Corruptf("extent without a name")
	case strings.ContainsAny(name, `/\`) || name == "." || name == ".." || drive:
		return codec.Unsupportedf("extent name %.200q leads to another place", name)
	case len(name) > maxPieceName:
		return codec.Corruptf("extent name %.40q of %d bytes, want at most %d", name, len(name), maxPieceName)
	case strings.ContainsFunc(name, unicode.IsControl):
		return codec.Corruptf("extent name %.200q with control characters", name)
	}
	return nil
}

// Size is the size of the disk in bytes.
func (p *Pieces) Size() int64 { return p.size }

// Names are the files that the disk is made of, in its order, each once.
func (p *Pieces) Names() []string {
	var names []string
	for _, x := range p.pieces {
		if x.kind != "ZERO" {
			names = append(names, x.name)
		}
	}
	return names
}

// Open joins the files, which are looked up by the names in the descriptor and
// must all be there; others are ignored. The disk reads them for as long as it
// is used. What a file that is a [codec.Disk] knows of its holes, the disk
// knows too.
func (p *Pieces) Open(ctx context.Context, files map[string]codec.Source) (codec.Disk, error) {
	d, err := p.open(ctx, files)
	if err != nil {
		return nil, fmt.Errorf("open vmdk of %d pieces: %w", len(p.pieces), err)
	}
	return d, nil
}

func (p *Pieces) open(ctx context.Context, files map[string]codec.Source) (codec.Disk, error) {
	var missing []string
	for _, name := range p.Names() {
		if files[name] == nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, codec.Unsupportedf("%s", lacking(missing))
	}
	j := &joined{File: new(codec.File)}
	for i, x := range p.pieces {
		last := i == len(p.pieces)-1
		if err := j.add(ctx, x, files[x.name], last); err != nil {
			if x.kind == "ZERO" {
				return nil, fmt.Errorf("extent %d: %w", i, err)
			}
			return nil, fmt.Errorf("extent %d, %q: %w", i, x.name, err)
		}
	}
	return j, nil
}

// maxNamed is how many missing pieces an error names.
const maxNamed = 20

func lacking(names []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of its files missing:", len(names))
	for i, name := range names {
		if i == maxNamed {
			fmt.Fprintf(&b, " and %d more", len(names)-i)
			break
		}
		fmt.Fprintf(&b, " %q", name)
	}
	return b.String()
}

var _ codec.Noted = (*joined)(nil)

// joined is the disk: the pieces one behind the other.
type joined struct {
	*codec.File
	sparse []*disk
	names  []string // of the sparse ones
}

// add appends extent x, whose file is src.
func (j *joined) add(ctx context.Context, x piece, src codec.Source, last bool) error {
	n := x.sectors * sector
	switch x.kind {
	case "ZERO":
		j.Zero(n)
	case "SPARSE":
		d, err := openExtent(ctx, src, x.sectors, last)
		if err != nil {
			return err
		}
		j.sparse, j.names = append(j.sparse, d), append(j.names, x.name)
		j.Guest(d, 0, n)
	default:
		off := x.first * sector
		if off > src.Size() || n > src.Size()-off {
			return codec.Corruptf("%d sectors from sector %d on: past the end of the file (%d bytes)", x.sectors, x.first, src.Size())
		}
		if d, ok := src.(codec.Disk); ok {
			j.Guest(d, off, n)
		} else {
			j.Append(n, flat{src, off})
		}
	}
	return nil
}

// Notes implements [codec.Noted].
func (j *joined) Notes() []string {
	var notes []string
	for i, d := range j.sparse {
		for _, s := range d.Notes() {
			notes = append(notes, fmt.Sprintf("piece %q: %s", j.names[i], s))
		}
	}
	return notes
}

// Verify checks the pieces as a single image is checked.
func (j *joined) Verify(ctx context.Context) error {
	for i, d := range j.sparse {
		if err := d.Verify(ctx); err != nil {
			return fmt.Errorf("piece %q: %w", j.names[i], err)
		}
	}
	return nil
}

// flat is the data of a file from off on, of whose holes nothing is known.
type flat struct {
	src codec.Source
	off int64
}

// Fill implements [codec.Filler].
func (f flat) Fill(ctx context.Context, p []byte, rel int64) error {
	return codec.ReadFull(ctx, f.src, p, f.off+rel, "flat data")
}

// openExtent opens a sparse extent of so many sectors. It is like a
// monolithicSparse image whose descriptor is empty or not there.
func openExtent(ctx context.Context, src codec.Source, sectors int64, last bool) (*disk, error) {
	b := make([]byte, min(sector, src.Size()))
	if err := codec.ReadFull(ctx, src, b, 0, "header"); err != nil {
		return nil, err
	}
	if !(format{}).Probe(b, nil) {
		if err := refuse(ctx, src); !errors.Is(err, codec.ErrFormat) {
			return nil, err
		}
		return nil, codec.Corruptf("no VMDK magic at 0 of a sparse extent")
	}
	if len(b) < sector {
		return nil, codec.Corruptf("header of %d bytes: the file ends after %d", sector, len(b))
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if h.descriptorOffset == 0 {
		h.descriptorSize = 0
	}
	whole := h
	if h.descriptorOffset == 0 { // which only a whole image must have
		whole.descriptorOffset, whole.descriptorSize = 1, 1
	}
	switch err := whole.check(); {
	case err != nil:
		return nil, err
	case h.compressed() || h.gdOffset == atFooter:
		return nil, codec.Unsupportedf("compressed extent of a split image; %s", flatten)
	case int64(h.capacity) != sectors && (!last || codec.Ceil(sectors, int64(h.grainSize)) != h.grains() || int64(h.capacity) < sectors):
		return nil, codec.Corruptf("capacity at 12 is %d sectors, the descriptor says %d", h.capacity, sectors)
	}
	if err := noDescriptor(ctx, src, &h); err != nil {
		return nil, err
	}
	d := &disk{loader: loader{src: src, h: &h, size: sectors * sector, footer: -1}}
	if h.unclean != 0 {
		d.notes = append(d.notes, "not closed cleanly by its writer")
	}
	return d, d.load(ctx)
}

// noDescriptor refuses an extent that has a descriptor: it is an image by
// itself, and its text may say something else.
func noDescriptor(ctx context.Context, src codec.Source, h *header) error {
	if h.descriptorSize == 0 {
		return nil
	}
	if h.descriptorOffset > uint64(src.Size())/sector {
		return codec.Corruptf("descriptor at sector %#x: past the end of the file (%d bytes)", h.descriptorOffset, src.Size())
	}
	n := int64(h.descriptorSize) * sector
	b := make([]byte, min(n, src.Size()))
	if err := codec.ReadFull(ctx, src, b, int64(h.descriptorOffset)*sector, "descriptor"); err != nil {
		return err
	}
	if !codec.Empty(b) {
		return codec.Unsupportedf("extent with a descriptor of its own, at sector %#x: an image by itself", h.descriptorOffset)
	}
	return nil
}

// load reads the tables, or their copy where they are damaged.
func (d *disk) load(ctx context.Context) error {
	h := d.loader.h
	t, err := d.loader.load(ctx, h.gdOffset, "grain directory")
	if errors.Is(err, codec.ErrCorrupt) && h.flags&flagRedundant != 0 {
		copied, err2 := d.loader.load(ctx, h.rgdOffset, "redundant grain directory")
		switch {
		case err2 == nil:
			d.first = err
			d.notes = append(d.notes, fmt.Sprintf("the redundant grain directory is used: %v", err))
			t, err = copied, nil
		case !errors.Is(err2, codec.ErrCorrupt):
			err = err2
		}
	}
	d.Table = t
	return err
}
