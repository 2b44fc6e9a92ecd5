// Package all is the list of formats: adding one is its folder and a line here.
package all

import (
	"slices"

	"imagefs/codec"
	"imagefs/codec/oci"
	"imagefs/codec/ova"
	"imagefs/codec/parallels"
	"imagefs/codec/qcow1"
	"imagefs/codec/qcow2"
	"imagefs/codec/qed"
	"imagefs/codec/raw"
	"imagefs/codec/vdi"
	"imagefs/codec/vhd"
	"imagefs/codec/vhdx"
	"imagefs/codec/vmdk"
	"imagefs/codec/zvhd"
)

// Formats are all that are read; raw, which claims what no other does, is last.
var Formats = slices.Concat(ReadOnly, Written)

// ReadOnly are never laid out: a disk is shown in one only if it was imported
// in it, as its own bytes.
var ReadOnly = []codec.Format{
	parallels.Format,
	qcow1.Format,
	qed.Format,
}

// Written are read and laid out.
var Written = []codec.Format{
	qcow2.Format,
	vdi.Format,
	vhd.Format,
	vhdx.Format,
	vmdk.Format,
	zvhd.Format,
	zvhd.Format2,
	raw.Format,
}

// Flavours are laid out only, and shown when asked for by name.
var Flavours = []codec.View{
	vhd.Fixed,
	qcow2.Zlib,
	qcow2.Zstd,
	vmdk.Deflate,
	vmdk.Sparse,
	zvhd.Zlib2,
}

// Views are all that can be asked for by name.
var Views = views()

func views() []codec.View {
	var vs []codec.View
	for _, f := range Written {
		vs = append(vs, f)
	}
	return append(vs, Flavours...)
}

// Shown are the formats that a mount shows unless others are asked for.
var Shown = []codec.View{
	qcow2.Format,
	vdi.Format,
	vhd.Format,
	vhdx.Format,
	vmdk.Format,
	raw.Format,
}

// Extensions maps the extension of a file's name to the format it promises.
var Extensions = extensions()

func extensions() map[string]string {
	m := map[string]string{"img": "raw", "qcow": "qcow1", "hdd": "parallels", "hds": "parallels"}
	for _, f := range Formats {
		m[f.Name()] = f.Name()
	}
	return m
}

// Packages hold an image whole; all are shown unless others are asked for.
var Packages = []codec.Package{
	ova.Package,
	oci.Package,
}

// PackageExtensions maps the extension of a file's name to the kind of package
// it promises.
func PackageExtensions() map[string]string {
	m := make(map[string]string)
	for _, p := range Packages {
		m[p.Name()] = p.Name()
	}
	return m
}
