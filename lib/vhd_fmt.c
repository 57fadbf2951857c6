/* SPDX-License-Identifier: BSD-2-Clause */
#include "vhd_fmt.h"

#include <string.h>

#include "bytes.h"

/* One's complement of the byte sum, the checksum's own four bytes left out (§5.1). */
static uint32_t checksum(const uint8_t *buf, size_t len, size_t at)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++)
		if (i < at || i >= at + 4)
			sum += buf[i];
	return ~sum;
}

/* Versions 0.1 and 1.1 of XenServer's tapdisk hid a disk without a new checksum (§5.1). */
static bool footer_sum_ok(const uint8_t buf[VHD_FOOTER_LEN])
{
	uint32_t sum = checksum(buf, VHD_FOOTER_LEN, 64), version = be32_get(buf + 32);

	if (sum == be32_get(buf + 64))
		return true;
	return memcmp(buf + 28, "tap", 3) == 0 &&
	       (version == 0x00000001 || version == 0x00010001) &&
	       sum + buf[85] == be32_get(buf + 64);
}

enum vhd_verdict vhd_footer_decode(const uint8_t buf[VHD_FOOTER_LEN], struct vhd_footer *f)
{
	struct vhd_footer t;

	if (memcmp(buf, "v_poison", 8) == 0)
		return VHD_POISONED;
	if (memcmp(buf, "conectix", 8) != 0)
		return VHD_NO_COOKIE;
	t.features = be32_get(buf + 8);
	t.version = be32_get(buf + 12);
	t.data_off = be64_get(buf + 16);
	t.timestamp = be32_get(buf + 24);
	memcpy(t.creator, buf + 28, 4);
	t.creator_version = be32_get(buf + 32);
	memcpy(t.creator_os, buf + 36, 4);
	t.original_size = be64_get(buf + 40);
	t.size = be64_get(buf + 48);
	t.cylinders = be16_get(buf + 56);
	t.heads = buf[58];
	t.sectors = buf[59];
	t.type = be32_get(buf + 60);
	memcpy(t.uuid, buf + 68, 16);
	t.saved = buf[84];
	t.hidden = buf[85];
	if (t.version >> 16 != 1)
		return VHD_BAD_VERSION;
	if (t.type != VHD_FIXED && t.type != VHD_DYNAMIC && t.type != VHD_DIFFERENCING)
		return VHD_BAD_TYPE;
	*f = t;
	return footer_sum_ok(buf) ? VHD_OK : VHD_BAD_CHECKSUM;
}

bool vhd_bits_reversed(const struct vhd_footer *f)
{
	return memcmp(f->creator, "tap", 3) == 0 && f->creator_version == 0x00000001;
}

void vhd_footer_seal(uint8_t buf[VHD_FOOTER_LEN])
{
	be32_put(buf + 64, checksum(buf, VHD_FOOTER_LEN, 64));
}

void vhd_footer_encode(const struct vhd_footer *f, uint8_t buf[VHD_FOOTER_LEN])
{
	memset(buf, 0, VHD_FOOTER_LEN);
	vhd_footer_patch(f, buf);
}

void vhd_footer_patch(const struct vhd_footer *f, uint8_t buf[VHD_FOOTER_LEN])
{
	memcpy(buf, "conectix", 8);
	be32_put(buf + 8, f->features);
	be32_put(buf + 12, f->version);
	be64_put(buf + 16, f->data_off);
	be32_put(buf + 24, f->timestamp);
	memcpy(buf + 28, f->creator, 4);
	be32_put(buf + 32, f->creator_version);
	memcpy(buf + 36, f->creator_os, 4);
	be64_put(buf + 40, f->original_size);
	be64_put(buf + 48, f->size);
	be16_put(buf + 56, f->cylinders);
	buf[58] = f->heads;
	buf[59] = f->sectors;
	be32_put(buf + 60, f->type);
	memcpy(buf + 68, f->uuid, 16);
	buf[84] = f->saved;
	buf[85] = f->hidden;
	vhd_footer_seal(buf);
}

enum vhd_verdict vhd_header_decode(const uint8_t buf[VHD_HEADER_LEN], struct vhd_header *h)
{
	struct vhd_header t;

	if (memcmp(buf, "cxsparse", 8) != 0)
		return VHD_NO_COOKIE;
	t.bat_off = be64_get(buf + 16);
	t.version = be32_get(buf + 24);
	t.entries = be32_get(buf + 28);
	t.block_size = be32_get(buf + 32);
	memcpy(t.parent_uuid, buf + 40, 16);
	t.parent_timestamp = be32_get(buf + 56);
	memcpy(t.parent_name, buf + 64, sizeof(t.parent_name));
	for (int i = 0; i < VHD_LOCATORS; i++) {
		const uint8_t *p = buf + 576 + 24 * i;

		t.loc[i].code = be32_get(p);
		t.loc[i].space = be32_get(p + 4);
		t.loc[i].len = be32_get(p + 8);
		t.loc[i].off = be64_get(p + 16);
	}
	if (t.version >> 16 != 1)
		return VHD_BAD_VERSION;
	*h = t;
	return checksum(buf, VHD_HEADER_LEN, 36) == be32_get(buf + 36) ? VHD_OK : VHD_BAD_CHECKSUM;
}

void vhd_header_encode(const struct vhd_header *h, uint8_t buf[VHD_HEADER_LEN])
{
	memset(buf, 0, VHD_HEADER_LEN);
	memset(buf + 8, 0xff, 8);
	vhd_header_patch(h, buf);
}

void vhd_header_patch(const struct vhd_header *h, uint8_t buf[VHD_HEADER_LEN])
{
	memcpy(buf, "cxsparse", 8);
	be64_put(buf + 16, h->bat_off);
	be32_put(buf + 24, h->version);
	be32_put(buf + 28, h->entries);
	be32_put(buf + 32, h->block_size);
	memcpy(buf + 40, h->parent_uuid, 16);
	be32_put(buf + 56, h->parent_timestamp);
	memcpy(buf + 64, h->parent_name, sizeof(h->parent_name));
	for (int i = 0; i < VHD_LOCATORS; i++) {
		uint8_t *p = buf + 576 + 24 * i;

		be32_put(p, h->loc[i].code);
		be32_put(p + 4, h->loc[i].space);
		be32_put(p + 8, h->loc[i].len);
		be64_put(p + 16, h->loc[i].off);
	}
	be32_put(buf + 36, checksum(buf, VHD_HEADER_LEN, 36));
}

const char *vhd_verdict_str(enum vhd_verdict v)
{
	switch (v) {
	case VHD_OK:
		return "sound";
	case VHD_NO_COOKIE:
		return "no signature";
	case VHD_POISONED:
		return "signature v_poison: disabled by a resize of XenServer that did not end; "
		       "run vhd-util revert with its journal";
	case VHD_BAD_VERSION:
		return "unknown format version";
	case VHD_BAD_TYPE:
		return "unknown disk type";
	case VHD_BAD_CHECKSUM:
		return "wrong checksum";
	}
	return "?";
}

void vhd_geometry(uint64_t size, uint16_t *cylinders, uint8_t *heads, uint8_t *sectors)
{
	uint64_t total = u64_min(size / SECTOR, 65535ull * 16 * 255), rows;
	uint32_t h, s;

	if (total >= 65535ull * 16 * 63) {
		s = 255;
		h = 16;
		rows = total / s;
	} else {
		s = 17;
		rows = total / s;
		h = (uint32_t)u64_max((rows + 1023) / 1024, 4);
		if (rows >= h * 1024ull || h > 16) {
			s = 31;
			h = 16;
			rows = total / s;
		}
		if (rows >= h * 1024ull) {
			s = 63;
			h = 16;
			rows = total / s;
		}
	}
	*cylinders = (uint16_t)(rows / h);
	*heads = (uint8_t)h;
	*sectors = (uint8_t)s;
}

uint64_t vhd_blocks(uint64_t size, uint32_t block_size)
{
	return size / block_size + (size % block_size != 0);
}

bool vhd_bat_place_ok(uint64_t off, uint64_t n, uint64_t head, uint64_t end)
{
	uint64_t bat_end;

	return off % SECTOR == 0 && off >= VHD_FOOTER_LEN && n <= UINT32_MAX &&
	       u64_add(off, u64_round_up(n * 4, SECTOR), &bat_end) && bat_end <= end &&
	       !(off < head + VHD_HEADER_LEN && bat_end > head);
}

uint32_t vhd_bitmap_len(uint32_t block_size)
{
	uint32_t bits = block_size / SECTOR;

	return (uint32_t)u64_round_up((bits + 7) / 8, SECTOR);
}
