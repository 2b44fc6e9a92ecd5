// Package oci is the image file of Oracle Cloud: a tar archive of two members.
// It has nothing to do with container images.
//
//	image_metadata.json  what the machine is
//	output.QCOW2         its one disk
//	zeros                up to a multiple of 10,240 bytes
//
// Headers are GNU's, a size of 8 GiB and more base-256.
//
// # The metadata
//
// A machine that was read from such a file keeps its JSON in
// Extra["oci.image_metadata"]: without white space, in the order it had. It is
// written again as it was, but for fields that the machine sets otherwise. Where
// there is none, or it is not of version 2, the smallest that the service takes
// is written: all devices paravirtualized, no capabilities, and
//
//	firmware                BIOS, for aarch64 UEFI_64
//	operatingSystem         "Custom"
//	operatingSystemVersion  ""
//	shapeCompatibilities    none, for aarch64 the two flexible Ampere shapes
//
// The format has no place for the machine's name, its description, processors
// and memory.
package oci
