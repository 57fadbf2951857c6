/* SPDX-License-Identifier: BSD-2-Clause */
/* What may lie beside header and BAT: locators (vhd-format §8) and XenServer's batmap (§18.2). */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd_check.h"

#define LOCATOR_MAX 65536u
#define MAC_ALIAS 0x4d616320u
/* VirtualBox has the two Mac codes wrong (§8.2). */
#define VBOX_MAC 0x4d163220u
#define VBOX_MACX 0x4d163258u

static bool is_utf16(uint32_t code)
{
	return code == VHD_W2RU || code == VHD_W2KU;
}

bool check_locator_known(uint32_t code)
{
	return is_utf16(code) || code == VHD_WI2R || code == VHD_WI2K || code == VHD_MACX ||
	       code == MAC_ALIAS || code == VBOX_MAC || code == VBOX_MACX;
}

static struct img_fault locator_fault(struct check *c, enum fault_id id, int i, unsigned field)
{
	struct img_fault f = fault_make(c, id, c->footer.data_off + 576 + 24 * (unsigned)i + field);

	/* With the parent at hand its names are simply written anew. */
	f.mendable = c->link.path != NULL;
	c->mend.link |= f.mendable;
	return f;
}

static int locator_text_ok(struct check *c, const struct vhd_locator *loc, bool *ok,
			   struct img_err *err)
{
	uint8_t *buf = calloc(1, loc->len + 1);
	int rc;

	if (!buf)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	rc = io_read(&c->file, buf, loc->len, loc->off, err);
	*ok = loc->code == MAC_ALIAS || loc->code == VBOX_MAC || !check_locator_known(loc->code) ||
	      (!is_utf16(loc->code) && buf[0]);
	if (rc == 0 && is_utf16(loc->code)) {
		char *text = vhd_utf16_get(buf, loc->len, false);

		*ok = text != NULL;
		free(text);
	}
	free(buf);
	return rc;
}

/* Whether it lies somewhere at all; reports why not. */
static bool locator_placed(struct check *c, const struct vhd_locator *loc, int i)
{
	const struct area *a;
	struct img_fault f;
	uint64_t end;

	if (loc->len == 0 || loc->len > LOCATOR_MAX || (is_utf16(loc->code) && loc->len % 2)) {
		f = locator_fault(c, F_LOCATOR_LENGTH, i, 8);
		FOUND(&f, "%" PRIu32, loc->len);
		EXPECTED(&f, "1 to %u bytes%s", LOCATOR_MAX, is_utf16(loc->code) ? ", even" : "");
	} else if (!u64_add(loc->off, loc->len, &end) || end > c->file_size) {
		f = locator_fault(c, F_LOCATOR_OUTSIDE, i, 16);
		FOUND(&f, "%" PRIu32 " bytes at %" PRIu64, loc->len, loc->off);
		EXPECTED(&f, "less than %" PRIu64, c->file_size);
	} else if ((a = check_area_at(c, loc->off, end))) {
		f = locator_fault(c, F_LOCATOR_OVERLAP, i, 16);
		FOUND(&f, "%" PRIu64 "-%" PRIu64 ", in %s", loc->off, end - 1, a->what);
	} else {
		return true;
	}
	fault_report(c, &f);
	return false;
}

static int check_locator(struct check *c, int i, struct img_err *err)
{
	const struct vhd_locator *loc = &c->header.loc[i];
	uint64_t room = vhd_locator_room(loc);
	struct img_fault f;
	bool ok = false;

	if (!check_locator_known(loc->code)) {
		f = locator_fault(c, F_LOCATOR_CODE, i, 0);
		f.mendable = false; /* somebody may know it */
		FOUND(&f, "0x%08" PRIx32, loc->code);
		fault_report(c, &f);
	}
	for (int j = 0; j < i; j++)
		if (c->header.loc[j].code == loc->code) {
			f = locator_fault(c, F_LOCATOR_TWICE, i, 0);
			FOUND(&f, "slots %d and %d", j, i);
			fault_report(c, &f);
			break;
		}
	if (!locator_placed(c, loc, i))
		return 0;
	if (room < loc->len) {
		f = locator_fault(c, F_LOCATOR_SPACE, i, 4);
		FOUND(&f, "%" PRIu32 " bytes in a space of %" PRIu64, loc->len, room);
		fault_report(c, &f);
	}
	if (locator_text_ok(c, loc, &ok, err) < 0)
		return -1;
	if (!ok) {
		f = locator_fault(c, F_LOCATOR_TEXT, i, 16);
		f.offset = loc->off;
		fault_report(c, &f);
		return 0;
	}
	/* Text that can be read was not overwritten: no block lies there. */
	check_area_add(c, loc->off, loc->len, room, "a locator");
	return 0;
}

int check_locators(struct check *c, struct img_err *err)
{
	if (!c->has_header || c->footer.type != VHD_DIFFERENCING)
		return 0;
	if (check_find_parent(c, err) < 0)
		return -1;
	for (int i = 0; i < VHD_LOCATORS; i++)
		if (c->header.loc[i].code != VHD_NONE && check_locator(c, i, err) < 0)
			return -1;
	return 0;
}

/* --- batmap --------------------------------------------------------------------------------- */

/* Version 1.1 summed signed bytes (§5.1). */
static int map_sum(struct check *c, uint64_t off, uint64_t len, uint32_t *sum, uint32_t *odd,
		   struct img_err *err)
{
	uint8_t buf[4096];

	*sum = *odd = 0;
	for (uint64_t done = 0; done < len;) {
		size_t n = (size_t)u64_min(len - done, sizeof(buf));

		if (io_read(&c->file, buf, n, off + done, err) < 0)
			return -1;
		for (size_t i = 0; i < n; i++) {
			*sum += buf[i];
			*odd += (uint32_t)(int8_t)buf[i];
		}
		done += n;
	}
	*sum = ~*sum;
	*odd = ~*odd;
	return 0;
}

static int load_map(struct check *c, uint64_t len, struct img_err *err)
{
	size_t want = ((size_t)c->blocks + 7) / 8;

	c->batmap = calloc(1, want + 1);
	if (!c->batmap)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	return io_read(&c->file, c->batmap, (size_t)u64_min(want, len), c->batmap_off, err);
}

static int check_map(struct check *c, struct img_err *err)
{
	uint64_t off = be64_get(c->batmap_raw + 8),
		 len = (uint64_t)be32_get(c->batmap_raw + 16) * SECTOR, end;
	/* Twice what the table needs is more than any writer reserves. */
	uint64_t most = 2 * u64_round_up(((uint64_t)c->header.entries + 7) / 8 + 1, SECTOR);
	uint32_t sum, odd, want = be32_get(c->batmap_raw + 24);

	if (len > most || len * 8 < c->blocks || !u64_add(off, len, &end) || end > c->end_off ||
	    check_area_at(c, off, end))
		return 0;
	c->batmap_off = off;
	if (map_sum(c, off, len, &sum, &odd, err) < 0)
		return -1;
	c->batmap_sound = want == sum || want == odd;
	if (!c->batmap_sound)
		return 0;
	check_area_add(c, off, len, len, "the batmap");
	return load_map(c, len, err);
}

/* Only where it is; what it says is compared when the bitmaps are known (vhd_check_bits.c). */
int check_batmap(struct check *c, struct img_err *err)
{
	uint64_t at = c->header.bat_off + u64_round_up((uint64_t)c->header.entries * 4, SECTOR);
	struct img_fault f;
	size_t got;

	if (!c->has_header || memcmp(c->footer.creator, "tap", 3) != 0)
		return 0;
	if (io_read_upto(&c->file, c->batmap_raw, SECTOR, at, &got, err) < 0)
		return -1;
	c->has_batmap = vhd_batmap_is(c->batmap_raw, got);
	if (c->has_batmap && c->batmap_raw[29]) {
		f = fault_make(c, F_ENCRYPTED, at + 29);
		fault_report(c, &f);
	}
	c->has_batmap &= !check_area_at(c, at, at + SECTOR);
	c->batmap_head = at;
	if (!c->has_batmap) {
		if (c->footer.creator_version < 0x00010002)
			return 0;
		f = fault_make(c, F_BATMAP_MISSING, at);
		fault_report(c, &f);
		return 0;
	}
	check_area_add(c, at, SECTOR, SECTOR, "the batmap's header");
	return check_map(c, err);
}
