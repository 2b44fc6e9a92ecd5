// Package ova is the OVA package: a tar archive of an OVF descriptor and of
// disks (DMTF DSP0243, Open Virtualization Format).
//
//	NAME.ovf         the descriptor, XML
//	NAME-disk0.vmdk  disks, streamOptimized
//	NAME-disk1.vmdk
//	1,024 zeros
//
// NAME is the image's name in the characters of portable file names, cut to 80
// bytes; the descriptor holds it as it is. Headers are USTAR, a size of 8 GiB
// and more base-256. No manifest is written: its digests would need every byte.
//
// # What is written where a machine says nothing
//
//	processors  1
//	memory      1,024 MiB
//	firmware    left out, which every reader takes for BIOS
//	system      Linux, 64 bits: id 101, otherLinux64Guest
//
// The machine is "vmx-10", has disks on LSI Logic SCSI controllers, 15 each, and
// one E1000 network adapter on a network "nat". UEFI is written as VMware does,
// as vmw:Config firmware "efi"; VirtualBox does not read that, and one ticks EFI
// in the machine's settings. Processors other than x86 are not possible.
//
// # What is read
//
// One machine of OVF 1 or 2: name, annotation, processors, memory, firmware,
// guest system; disks by the place on their controller. Each has a plain file
// in the archive, known by its signature as a disk. A descriptor that splits or
// packs files, refers to parents, or leaves disks to be made is refused, and so
// is a member that the descriptor does not name. Certificates are not checked;
// manifests are by Verify.
package ova
