import { mountCurves } from "./curves.js";
import { mountFeatures } from "./features.js";
import { mountAttention } from "./attention.js";
import { mountPositions } from "./positions.js";
import { mountMasks } from "./masks.js";
import { mountWords } from "./words.js";
import { mountMistakes } from "./mistakes.js";
import { mountOverview } from "./overview.js";
import { mountCompare } from "./compare.js";

// How each view is mounted, by the name of its builder in views/.
export const MOUNTS = {
  overview: mountOverview,
  curves: mountCurves,
  features: mountFeatures,
  attention: mountAttention,
  positions: mountPositions,
  masks: mountMasks,
  words: mountWords,
  mistakes: mountMistakes,
  compare: mountCompare,
};
