/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef CRASH_KEPT_H
#define CRASH_KEPT_H

#include "ops.h"

/* All disks of the scenario get their sums. */
void kept_plant(struct world *w);
/* The removal of kept sums was recorded, and is not known to be durable. */
bool kept_removal_failed(const struct tape *t);
/* What is believed of any disk in the folder is its content. */
bool kept_holds(struct world *w, const struct when *when);
/* How often nothing of a disk was read. */
extern unsigned long kept_believed;

#endif
