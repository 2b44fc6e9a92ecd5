package vhdx

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode/utf16"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// locator makes a parent locator of keys and values.
func locator(pairs ...string) []byte {
	b := make([]byte, 20+6*len(pairs))
	le.PutUint16(b[18:], uint16(len(pairs)/2))
	for i, s := range pairs {
		e := b[20+12*(i/2):]
		k := i % 2
		le.PutUint32(e[4*k:], uint32(len(b)))
		u := utf16.Encode([]rune(s))
		le.PutUint16(e[8+2*k:], uint16(2*len(u)))
		for _, x := range u {
			b = le.AppendUint16(b, x)
		}
	}
	return b
}

var someGUID = parseGUID("11223344-5566-7788-99AA-BBCCDDEEFF00")

// each calls f with both copies of a structure.
func each(b []byte, at1, at2 int, f func(b []byte)) {
	f(b[at1:])
	f(b[at2:])
}

func headers(f func(b []byte)) func([]byte) {
	return func(b []byte) { each(b, header1At, header2At, f) }
}

func regionTables(f func(b []byte)) func([]byte) {
	return func(b []byte) { each(b, regionTable1At, regionTable2At, f) }
}

func TestOpenRefuses(t *testing.T) {
	const unsealed = true
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		err    error
		text   string
		raw    bool // checksums stay as they are
	}{
		{"another format", func(b []byte) { copy(b, "vhdxfilf") }, codec.ErrFormat, `"vhdxfilf"`, false},
		{"both headers without signature", headers(func(b []byte) { b[0] = 'H' }), codec.ErrCorrupt, "headers at 0x10000 and 0x20000", false},
		{"both headers with wrong checksum", headers(func(b []byte) { b[4000]++ }), codec.ErrCorrupt, "checksum", unsealed},
		{"different headers with one sequence number", func(b []byte) { b[header1At+8] = 1; b[header1At+16]++ }, codec.ErrCorrupt, "sequence number 1", false},
		{"header version 2", headers(func(b []byte) { b[66] = 2 }), codec.ErrUnsupported, "header version 2", false},
		{"log not at a whole MiB", headers(func(b []byte) { le.PutUint64(b[72:], mib+512) }), codec.ErrCorrupt, "log at 0x100200", false},
		{"log over the headers", headers(func(b []byte) { le.PutUint64(b[72:], 0) }), codec.ErrCorrupt, "log at 0x0", false},
		{"log past the end", headers(func(b []byte) { le.PutUint64(b[72:], 8*mib) }), codec.ErrCorrupt, "truncated: log at 0x800000", false},
		{"log at an offset of 64 bits", headers(func(b []byte) { le.PutUint64(b[72:], 1<<64-mib) }), codec.ErrCorrupt, "truncated: log", false},
		{"log over the BAT", headers(func(b []byte) { le.PutUint64(b[72:], batAt) }), codec.ErrCorrupt, "share the bytes at 0x300000", false},

		{"region tables without signature", regionTables(func(b []byte) { b[0] = 0 }), codec.ErrCorrupt, "region tables at 0x30000 and 0x40000", false},
		{"region tables with wrong checksum", regionTables(func(b []byte) { b[60000]++ }), codec.ErrCorrupt, "region tables", unsealed},
		{"different region tables", func(b []byte) { b[regionTable2At+70]++ }, codec.ErrCorrupt, "different", false},
		{"region table of 2048 entries", regionTables(func(b []byte) { le.PutUint32(b[8:], 2048) }), codec.ErrCorrupt, "2048 entries", false},
		{"unknown required region", func(b []byte) { addRegion(b, region{someGUID, spareAt, mib, true}) }, codec.ErrUnsupported, "11223344-5566-7788-99AA-BBCCDDEEFF00", false},
		{"unknown region past the end", func(b []byte) { addRegion(b, region{someGUID, 8 * mib, mib, false}) }, codec.ErrCorrupt, "11223344-5566-7788-99AA-BBCCDDEEFF00", false},
		{"unknown region over a block", func(b []byte) { addRegion(b, region{someGUID, 5 * mib, mib, false}) }, codec.ErrCorrupt, "share the bytes at 0x500000", false},
		{"two BAT regions", func(b []byte) { addRegion(b, region{regionBAT, spareAt, mib, true}) }, codec.ErrCorrupt, "two regions 2DC27766", false},
		{"no BAT region", regionTables(func(b []byte) { copy(b[16:], someGUID[:]); b[16+28] = 0 }), codec.ErrCorrupt, "no BAT region", false},
		{"no metadata region", regionTables(func(b []byte) { b[8] = 1 }), codec.ErrCorrupt, "no metadata region", false},
		{"region not at a whole MiB", regionTables(func(b []byte) { b[16+16] = 1 }), codec.ErrCorrupt, "region 2DC27766-F623-4200-9D64-115E9BFD4A08 at 0x300001", false},
		{"region in the headers", regionTables(func(b []byte) { le.PutUint64(b[16+16:], 0) }), codec.ErrCorrupt, "region 2DC27766", false},
		{"region of no length", regionTables(func(b []byte) { le.PutUint32(b[16+24:], 0) }), codec.ErrCorrupt, "region 2DC27766", false},
		{"region of no whole MiB", regionTables(func(b []byte) { le.PutUint32(b[16+24:], 4096) }), codec.ErrCorrupt, "4096 bytes", false},
		{"region past the end", regionTables(func(b []byte) { le.PutUint32(b[16+24:], 6*mib) }), codec.ErrCorrupt, "truncated: region 2DC27766", false},
		{"BAT and metadata in one place", regionTables(func(b []byte) { le.PutUint64(b[48+16:], batAt) }), codec.ErrCorrupt, "metadata table: signature", false},

		{"metadata without signature", func(b []byte) { b[metadataAt] = 'M' }, codec.ErrCorrupt, `"Metadata"`, false},
		{"metadata of 2048 entries", func(b []byte) { le.PutUint16(b[metadataAt+10:], 2048) }, codec.ErrCorrupt, "2048 entries", false},
		{"unknown required item", func(b []byte) { addItem(b, someGUID, itemRequired, nil) }, codec.ErrUnsupported, "11223344-5566-7788-99AA-BBCCDDEEFF00", false},
		{"required item of a user", func(b []byte) { addItem(b, itemPage83, itemRequired|itemIsUser, nil) }, codec.ErrUnsupported, "BECA12AB", false},
		{"two items of one kind", func(b []byte) { addItem(b, itemDiskSize, itemRequired, make([]byte, 8)) }, codec.ErrCorrupt, "two items 2FA54224", false},
		{"no file parameters", func(b []byte) { copy(b[metadataAt+32:], someGUID[:]); b[metadataAt+32+24] = 0 }, codec.ErrCorrupt, "file parameters of 0 bytes", false},
		{"item in the table", func(b []byte) { le.PutUint32(b[metadataAt+32+16:], 4096) }, codec.ErrCorrupt, "item CAA16737", false},
		{"item past the region", func(b []byte) { le.PutUint32(b[metadataAt+32+16:], mib-4) }, codec.ErrCorrupt, "item CAA16737", false},
		{"item longer than 1 MiB", func(b []byte) { le.PutUint32(b[metadataAt+32+20:], mib+1) }, codec.ErrCorrupt, "item CAA16737", false},
		{"short item", func(b []byte) { le.PutUint32(b[metadataAt+32+20:], 7) }, codec.ErrCorrupt, "file parameters of 7 bytes", false},
		{"block size 0", func(b []byte) { le.PutUint32(itemIn(b, 0), 0) }, codec.ErrCorrupt, "block size 0", false},
		{"block size of half a MiB", func(b []byte) { le.PutUint32(itemIn(b, 0), mib/2) }, codec.ErrCorrupt, "block size 524288", false},
		{"block size of 512 MiB", func(b []byte) { le.PutUint32(itemIn(b, 0), 512*mib) }, codec.ErrCorrupt, "block size 536870912", false},
		{"block size of 3 MiB", func(b []byte) { le.PutUint32(itemIn(b, 0), 3*mib) }, codec.ErrCorrupt, "block size 3145728", false},
		{"a parent that is not named", func(b []byte) { itemIn(b, 0)[4] = hasParent }, codec.ErrUnsupported, "parent (not named)", false},
		{"a parent", func(b []byte) {
			itemIn(b, 0)[4] = hasParent
			addItem(b, itemParentLocator, itemRequired, locator("parent_linkage", "{x}", "relative_path", ".\\up\n.vhdx", "absolute_win32_path", "C:\\up.vhdx"))
		}, codec.ErrUnsupported, `".\\up\n.vhdx" or "C:\\up.vhdx"`, false},
		{"a parent locator that is damaged", func(b []byte) {
			itemIn(b, 0)[4] = hasParent
			p := locator("relative_path", "up.vhdx")
			le.PutUint32(p[24:], 1<<31)
			addItem(b, itemParentLocator, itemRequired, p)
		}, codec.ErrUnsupported, "parent (not named)", false},
		{"a parent locator and no parent", func(b []byte) { addItem(b, itemParentLocator, itemRequired, locator()) }, codec.ErrCorrupt, "parent locator", false},
		{"unknown flags", func(b []byte) { itemIn(b, 0)[4] = 4 }, codec.ErrUnsupported, "unknown flags 0x4", false},
		{"logical sector size 1024", func(b []byte) { le.PutUint32(itemIn(b, 2), 1024) }, codec.ErrCorrupt, "logical sector size 1024", false},
		{"logical sector size 0", func(b []byte) { le.PutUint32(itemIn(b, 2), 0) }, codec.ErrCorrupt, "logical sector size 0", false},
		{"no logical sector size", func(b []byte) { le.PutUint32(b[metadataAt+32+2*32+20:], 0) }, codec.ErrCorrupt, "logical sector size of 0 bytes", false},
		{"no virtual disk size", func(b []byte) { le.PutUint32(b[metadataAt+32+32+20:], 0) }, codec.ErrCorrupt, "virtual disk size of 0 bytes", false},
		{"disk of half a sector", func(b []byte) { le.PutUint64(itemIn(b, 1), 5*mib+256) }, codec.ErrCorrupt, "virtual disk size 5243136", false},
		{"disk of over 64 TiB", func(b []byte) { le.PutUint64(itemIn(b, 1), 64*tib+512) }, codec.ErrCorrupt, "virtual disk size 70368744178176", false},
		{"disk of 16 EiB", func(b []byte) { le.PutUint64(itemIn(b, 1), 1<<64-512) }, codec.ErrCorrupt, "virtual disk size 18446744073709551104", false},
		{"disk larger than its BAT", func(b []byte) { le.PutUint64(itemIn(b, 1), tib) }, codec.ErrCorrupt, "524543 entries", false},

		{"block partially present", func(b []byte) { batIn(b, 1)[0] = 7 }, codec.ErrCorrupt, "BAT entry 1: block partially present", false},
		{"block of unknown state", func(b []byte) { batIn(b, 2)[0] = 4 }, codec.ErrCorrupt, "BAT entry 2: state 4", false},
		{"block past the end", func(b []byte) { le.PutUint64(batIn(b, 1), 8*mib|6) }, codec.ErrCorrupt, "block 1 at 0x800000", false},
		{"block at an offset of 64 bits", func(b []byte) { le.PutUint64(batIn(b, 1), 1<<64-mib|6) }, codec.ErrCorrupt, "block 1 at", false},
		{"block cut by the end", func(b []byte) { le.PutUint64(batIn(b, 1), 7*mib|6) }, codec.ErrCorrupt, "cut by the end", false},
		{"block at offset 0", func(b []byte) { le.PutUint64(batIn(b, 1), 6) }, codec.ErrCorrupt, "block 1 at 0x0", false},
		{"block over the log", func(b []byte) { le.PutUint64(batIn(b, 1), mib|6) }, codec.ErrCorrupt, "share", false},
		{"block over the BAT", func(b []byte) { le.PutUint64(batIn(b, 1), 3*mib|6) }, codec.ErrCorrupt, "share", false},
		{"two blocks in one place", func(b []byte) { copy(batIn(b, 1), batIn(b, 0)) }, codec.ErrCorrupt, "share", false},
		{"two blocks that overlap", func(b []byte) { le.PutUint64(batIn(b, 1), 5*mib|6) }, codec.ErrCorrupt, "share", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := layoutBytes(t)
			c.damage(b)
			if !c.raw {
				seal(b)
			}
			codectest.Refused(t, Format, b, c.err, c.text)
		})
	}
}

// TestOpenReads: what differs from a laid out image and is read all the same.
func TestOpenReads(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b []byte)
		raw    bool
	}{
		{"the image as it is", func(b []byte) {}, false},
		{"one header damaged", func(b []byte) { b[header2At+100]++ }, true},
		{"the other header damaged", func(b []byte) { b[header1At+100]++ }, true},
		{"the same header twice", func(b []byte) { b[header1At+8] = 1 }, false},
		{"the first region table damaged", func(b []byte) { b[regionTable1At+100]++ }, true},
		{"the second region table damaged", func(b []byte) { b[regionTable2At+100]++ }, true},
		{"regions not marked as required", regionTables(func(b []byte) { b[16+28], b[48+28] = 0, 0 }), false},
		{"an unknown region", func(b []byte) { addRegion(b, region{someGUID, 7 * mib, mib, false}) }, false},
		{"no log at all", headers(func(b []byte) { clear(b[64:66]); clear(b[68:80]) }), false},
		{"an unknown item", func(b []byte) { addItem(b, someGUID, itemVirtualDisk, []byte("hello")) }, false},
		{"an item of a user", func(b []byte) { addItem(b, itemDiskSize, itemIsUser, []byte("hello")) }, false},
		{"an item far behind the table", func(b []byte) {
			copy(b[metadataAt+500*kib:], itemIn(b, 1))
			le.PutUint32(b[metadataAt+32+32+16:], 500*kib)
		}, false},
		{"leave blocks allocated", func(b []byte) { itemIn(b, 0)[4] = leaveAllocated }, false},
		{"physical sectors of 512", func(b []byte) { le.PutUint32(itemIn(b, 3), 512) }, false},
		{"block not present", func(b []byte) { batIn(b, 1)[0] = blockNotPresent }, false},
		{"block undefined", func(b []byte) { le.PutUint64(batIn(b, 1), spareAt|blockUndefined) }, false},
		{"block unmapped", func(b []byte) { le.PutUint64(batIn(b, 1), spareAt|blockUnmapped) }, false},
		{"block unmapped, as in drafts", func(b []byte) { le.PutUint64(batIn(b, 1), spareAt|blockUnmapped095) }, false},
		{"entries behind the last", func(b []byte) { batIn(b, 3)[0] = 7 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := layoutBytes(t)
			c.change(b)
			if !c.raw {
				seal(b)
			}
			d, err := Format.Open(context.Background(), codectest.Bytes(b))
			if err != nil {
				t.Fatal(err)
			}
			if err := codectest.Same(d, theDisk()); err != nil {
				t.Error(err)
			}
			if d.Size() != 5*mib {
				t.Errorf("disk has %d bytes, want %d", d.Size(), 5*mib)
			}
		})
	}
}

// TestLastBlockNeedsNoMoreThanTheDisk: the file may end where the disk does.
func TestLastBlockNeedsNoMoreThanTheDisk(t *testing.T) {
	b := layoutBytes(t)
	le.PutUint64(batIn(b, 2), spareAt|blockPresent) // of which the disk has 1 MiB
	for _, cut := range []int{0, 1} {
		d, err := Format.Open(context.Background(), codectest.Bytes(b[:7*mib-cut]))
		if cut == 1 {
			if !errors.Is(err, codec.ErrCorrupt) {
				t.Errorf("a file that lacks the last byte: %v, want %v", err, codec.ErrCorrupt)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, mib)
		if _, err := d.ReadAt(context.Background(), p, 4*mib); err != nil {
			t.Fatal(err)
		}
		if string(p) != string(b[spareAt:7*mib]) {
			t.Error("the last block has other bytes")
		}
	}
}

func TestLayoutRefusesMoreThan64TiB(t *testing.T) {
	if _, err := Format.Layout(context.Background(), codectest.Empty(64*tib), codectest.TestFacts()); err != nil {
		t.Errorf("64 TiB: %v", err)
	}
	_, err := Format.Layout(context.Background(), codectest.Empty(64*tib+1), codectest.TestFacts())
	if !errors.Is(err, codec.ErrTooLarge) || !strings.Contains(err.Error(), "70368744177665 bytes, at most 70368744177664") {
		t.Errorf("a byte more: %v, want %v with both numbers", err, codec.ErrTooLarge)
	}
}
