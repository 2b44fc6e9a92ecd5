package main

import (
	"fmt"
	"strings"
)

// target is a place that images are copied to: a cloud or a hypervisor.
type target struct {
	name string
	// view is what to copy: a format of a disk, or a kind of package.
	view string
	// command uploads or attaches it. NAME is the image, FILE the file.
	command string
}

// targets is the list that "imagefs show" prints and the README repeats: the
// view that each takes without a conversion, and the one command for it. What
// only the place's owner knows is in capitals.
var targets = []target{
	{"VirtualBox", "vmdk", "VBoxManage storageattach VM --storagectl SATA --port 0 --device 0 --type hdd --medium FILE"},
	{"VMware ESXi", "ova", "ovftool --name=NAME --datastore=DATASTORE FILE vi://USER@HOST/"},
	{"VMware Workstation", "ova", "ovftool --name=NAME FILE ~/vmware/"},
	{"Hyper-V", "vhdx", "scp FILE USER@HOST:NAME.vhdx && ssh USER@HOST powershell New-VM -Name NAME -MemoryStartupBytes 2GB -VHDPath NAME.vhdx"},
	{"QEMU/KVM", "qcow2", "qemu-system-x86_64 -enable-kvm -m 2048 -snapshot -drive file=FILE,format=qcow2,if=virtio"},
	{"OpenStack", "qcow2", "openstack image create --disk-format qcow2 --container-format bare --file FILE NAME"},
	{"AWS", "vmdk", "aws s3 cp FILE s3://BUCKET/NAME.vmdk && aws ec2 import-image --disk-containers 'Format=VMDK,UserBucket={S3Bucket=BUCKET,S3Key=NAME.vmdk}'"},
	{"Azure", "fixed.vhd", "azcopy copy FILE 'https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME.vhd?SAS' --blob-type PageBlob"},
	{"Google Cloud", "vmdk", "gcloud compute images import NAME --source-file FILE --os OS"},
	{"Oracle Cloud", "oci", "oci os object put --bucket-name BUCKET --file FILE --name NAME.oci   (then Compute, Custom images, Import)"},
	{"Open Telekom Cloud", "zvhd2", "obsutil cp FILE obs://BUCKET/NAME.zvhd2   (then Image Management Service, Create Image, from the bucket)"},
	{"IBM Cloud VPC", "qcow2", "ibmcloud cos upload --bucket BUCKET --key NAME.qcow2 --file FILE && ibmcloud is image-create NAME --file cos://REGION/BUCKET/NAME.qcow2 --os-name OS"},
	{"IBM Cloud classic", "vhd", "ibmcloud cos upload --bucket BUCKET --key NAME.vhd-0.vhd --file FILE && ibmcloud sl image import NAME cos://REGION/BUCKET/NAME.vhd-0.vhd OS"},
}

// file is what to copy for disk n of an image, below a mount's images/.
func (t target) file(image string, n int) string {
	if t.whole() {
		return fmt.Sprintf("%s/%s.%s", image, image, t.view)
	}
	return fmt.Sprintf("%s/disk%d.%s", image, n, t.view)
}

// whole reports whether the target takes the image as one package.
func (t target) whole() bool { return t.view == "ova" || t.view == "oci" }

// line is the command with an image's names in it, as a shell takes them.
func (t target) line(mount, image string, n int) string {
	return strings.NewReplacer(
		"FILE", quote(mount+"/images/"+t.file(image, n)), "NAME", quote(image),
	).Replace(t.command)
}

// quote writes s so that a shell takes it as one word.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:+@%=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
